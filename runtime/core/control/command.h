/* SPDX-License-Identifier: Apache-2.0 */
/* Commands over the control socket: one datagram is one word. */
#pragma once

#include "pilot.h"

/* Where the answer goes. */
typedef struct {
    pilot_command command;
    unsigned address_bytes; /* 0: nobody waits for it */
    char address[128];      /* struct sockaddr_un */
} command_request;

/* Takes at most one datagram, never waits. COMMAND_NONE when there is none, when it is no command (which is answered),
 * and when whoever asked for a motion or for no torque has given up waiting. */
command_request command_take(int socket_fd);
/* "ANSWER STATE REASON", dropped when the asker does not read. */
void command_reply(int socket_fd, const command_request *request, const pilot_output *output);
