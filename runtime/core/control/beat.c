/* SPDX-License-Identifier: Apache-2.0 */
#include "beat.h"

static const uint64_t magic = 0x3254414542414c56; /* "VLABEAT2" */

int beat_open(shared_file *file, const char *path, bool writer)
{
    int failure = shared_open_marked(file, path, sizeof(beat_file), writer, magic);
    if (failure == 0 && writer)
        beat_write(file->memory, 0);
    return failure;
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
