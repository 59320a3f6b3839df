/* SPDX-License-Identifier: Apache-2.0 */
#include "beat.h"

#include <errno.h>

static const uint64_t magic = 0x3154414542414c56; /* "VLABEAT1" */

int beat_open(shared_file *file, const char *path, bool writer)
{
    int failure = shared_open(file, path, sizeof(beat_file), writer);
    if (failure != 0)
        return failure;
    beat_file *beat = file->memory;
    if (writer) {
        shared_store(&beat->beat_ns, 0);
        shared_store(&beat->magic, magic);
    } else if (shared_load(&beat->magic) != magic) {
        shared_close(file);
        return EINVAL;
    }
    return 0;
}

void beat_write(beat_file *file, int64_t now_ns)
{
    shared_store(&file->beat_ns, (uint64_t)now_ns);
}

bool beat_missing(const beat_file *file, int64_t now_ns)
{
    int64_t beat_ns = (int64_t)shared_load(&file->beat_ns);
    return now_ns - beat_ns > BEAT_SILENCE_NS || beat_ns > now_ns + BEAT_SILENCE_NS;
}
