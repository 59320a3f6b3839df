/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "command.h"
#include "status.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

_Static_assert(sizeof(struct sockaddr_un) <= sizeof((command_request *)0)->address, "an address fits");

/* The word's command; COMMAND_NONE for anything else. */
static pilot_command command_of_word(const char *word, size_t bytes)
{
    static const struct {
        const char *word;
        pilot_command command;
    } words[] = {
        {"ping", COMMAND_PING},
        {"arm", COMMAND_ARM},
        {"hold", COMMAND_HOLD},
        {"park", COMMAND_PARK},
        {"stop", COMMAND_STOP},
        {"torque_off", COMMAND_TORQUE_OFF},
        {"torque_off_now", COMMAND_TORQUE_OFF_NOW},
        {"recover", COMMAND_RECOVER},
        {"redo", COMMAND_REDO},
    };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strlen(words[i].word) == bytes && memcmp(words[i].word, word, bytes) == 0)
            return words[i].command;
    return COMMAND_NONE;
}

static const char *answer_name(pilot_answer answer)
{
    static const char *const names[] = {"none",       "done",    "busy",  "not_armed",
                                        "not_parked", "no_pose", "fault", "outside"};
    return names[answer];
}

static void send_text(int socket_fd, const command_request *request, const char *text, size_t bytes)
{
    if (request->address_bytes > sizeof(sa_family_t))
        (void)sendto(socket_fd, text, bytes, MSG_DONTWAIT | MSG_NOSIGNAL, (const struct sockaddr *)request->address,
                     request->address_bytes);
}

/* Nobody has the asker's socket open any more: it has given up, or was killed and left the socket's name behind. */
static bool gone(const command_request *request)
{
    int probe = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bool refused = probe >= 0 && connect(probe, (const struct sockaddr *)request->address, request->address_bytes) < 0
                   && (errno == ENOENT || errno == ECONNREFUSED);
    if (probe >= 0)
        (void)close(probe);
    return refused;
}

/* A word that moves the arm or lets it go is not for later. */
static bool too_late(const command_request *request)
{
    bool harmless =
        request->command == COMMAND_HOLD || request->command == COMMAND_STOP || request->command == COMMAND_PING;
    return !harmless && request->address_bytes > sizeof(sa_family_t) && gone(request);
}

command_request command_take(int socket_fd)
{
    command_request request = {.command = COMMAND_NONE};
    char word[32];
    socklen_t address_bytes = sizeof request.address;
    ssize_t bytes =
        recvfrom(socket_fd, word, sizeof word, MSG_DONTWAIT, (struct sockaddr *)request.address, &address_bytes);
    if (bytes < 0)
        return request;
    request.address_bytes = address_bytes;
    request.command = command_of_word(word, (size_t)bytes);
    if (request.command == COMMAND_NONE) {
        static const char unknown[] = "unknown";
        send_text(socket_fd, &request, unknown, sizeof unknown - 1);
    }
    if (too_late(&request))
        request.command = COMMAND_NONE;
    return request;
}

void command_reply(int socket_fd, const command_request *request, const pilot_output *output)
{
    char text[96];
    int bytes = snprintf(text, sizeof text, "%s %s %s %d", answer_name(output->answer),
                         status_state_name(output->state),
                         output->reason == REASON_NONE ? "-" : status_reason_name(output->reason), output->joint);
    send_text(socket_fd, request, text, (size_t)bytes);
}
