/* SPDX-License-Identifier: Apache-2.0 */
#include "picture.h"

/* One row between two source rows: [width, 3]. What a grey level is worth times its share is looked up, 256 of each. */
static void blend_rows(const uint8_t *first, const uint8_t *second, float share, size_t cells, float *row)
{
    float upper[256], lower[256], rest = 1.0f - share;
    for (int level = 0; level < 256; level++) {
        float value = (float)level / 255.0f;
        upper[level] = value * rest;
        lower[level] = value * share;
    }
    for (size_t i = 0; i < cells; i++)
        row[i] = upper[first[i]] + lower[second[i]];
}

static void blend_columns(const picture_samples *columns, const float *row, size_t channel, float *out)
{
    for (size_t i = 0; i < columns->count; i++) {
        float share = columns->weight[i], rest = 1.0f - share;
        float left = row[(size_t)columns->first[i] * PICTURE_CHANNELS + channel] * rest;
        float right = row[(size_t)columns->second[i] * PICTURE_CHANNELS + channel] * share;
        out[i] = (left + right) * 2.0f - 1.0f;
    }
}

static void fill(float *from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        from[i] = -1.0f;
}

void picture_scale(const picture_plan *plan, const uint8_t *image, float *row, float *pixels)
{
    const size_t width = plan->target_width, plane = plan->target_height * width;
    const size_t above = plan->target_height - plan->rows.count, left = width - plan->columns.count;
    const size_t cells = plan->source_width * PICTURE_CHANNELS;
    for (size_t channel = 0; channel < PICTURE_CHANNELS; channel++)
        fill(pixels + channel * plane, above * width);
    for (size_t y = 0; y < plan->rows.count; y++) {
        blend_rows(image + (size_t)plan->rows.first[y] * cells, image + (size_t)plan->rows.second[y] * cells,
                   plan->rows.weight[y], cells, row);
        for (size_t channel = 0; channel < PICTURE_CHANNELS; channel++) {
            float *out = pixels + channel * plane + (above + y) * width;
            fill(out, left);
            blend_columns(&plan->columns, row, channel, out + left);
        }
    }
}
