// Causal attention over the paged KV cache for a ragged batch, and the write of the batch's KV.
//
// A row of one new token reads each key and value once, for all query heads that share it. A row
// of more tokens is computed in tiles of PANEL queries (tokens x heads of a group) times TILE
// tokens of the cache: the lanes of a vector are queries, so the soft maximum needs no sum across
// lanes and no matrix is transposed but the queries. A query's result does not depend on the other
// queries of the batch, nor on the place of its token in the step: tiles begin at multiples of
// TILE, and all sums run in the order of the tokens.

#pragma once

#include "threads.h"
#include "vectors.h"

namespace tdpipe {

constexpr int64_t TILE = 96;  // a multiple of every TILE_ROWS
constexpr int64_t PANELS = 16;  // of queries that share the converted keys and values
constexpr int HEADS = LANES == 16 ? 4 : 3;  // query heads whose sums fit the registers
constexpr float NEVER = -1e30f;  // the score of a token that a query does not see

extern "C" struct AttentionStep {
    const void *query, *key, *value;  // element [head, token, i] at head * _head + token * _token + i
    void *out;                        // [tokens, heads, value dim]
    void *keys, *values;              // the cache: [blocks, KV heads, block size, dim]
    const float *sinks;               // [heads], or null
    const int64_t *begins;            // [rows + 1]: the row's first token in the batch
    const int64_t *starts;            // [rows]: the tokens that are in the cache already
    const int64_t *tables;            // [rows]: where the row's blocks begin in `blocks`
    const int32_t *blocks;
    int64_t query_head, query_token, key_head, key_token, value_head, value_token;
    int64_t rows, tokens, heads, kv_heads, key_dim, value_dim, block_size;
    int64_t window;                   // tokens that a query sees, itself included; 0: all
    int64_t chunk;                    // a query sees no token before the last multiple; 0: all
    int64_t type, cache_type;         // 0 float32, 1 bfloat16, 2 float16, 3 fp8 e4m3, 4 fp8 e5m2
    int64_t threads;
    float scale, softcap;             // softcap 0: none
};

namespace {

// `type`: of the activations, in which the cache may be, too.
void convert_from(int64_t type, float *to, const void *from, int64_t at, int64_t count) {
    if (type == 0) convert(to, (const float *)from + at, count);
    if (type == 1) convert(to, (const BFloat16 *)from + at, count);
    if (type == 2) convert(to, (const Float16 *)from + at, count);
}

void convert_to(int64_t type, void *to, int64_t at, const float *from, int64_t count) {
    if (type == 0) convert_back((float *)to + at, from, count);
    if (type == 1) convert_back((BFloat16 *)to + at, from, count);
    if (type == 2) convert_back((Float16 *)to + at, from, count);
}

// T is the type of the cache.
template <typename T> struct Attention {
    // In pairs of vectors fp8 is loaded faster, and the other types more slowly (by 6 %).
    static constexpr bool IS_FP8 = sizeof(T) == 1;

    const AttentionStep &step;
    const int64_t heads, kv_heads, group, key_dim, value_dim, block_size;
    const int64_t key_width, value_width;  // of the dims, padded to whole vectors

    explicit Attention(const AttentionStep &s)
        : step(s), heads(s.heads), kv_heads(s.kv_heads), group(s.heads / s.kv_heads),
          key_dim(s.key_dim), value_dim(s.value_dim), block_size(s.block_size),
          key_width(round_up(s.key_dim, LANES)), value_width(round_up(s.value_dim, LANES)) {}

    // The place of a token in the cache of KV head 0; head h is at + h * block_size. In units of dims.
    int64_t slot(int64_t row, int64_t token) const {
        int64_t block = step.blocks[step.tables[row] + token / block_size];
        return block * kv_heads * block_size + token % block_size;
    }

    void slots(int64_t row, int64_t begin, int64_t end, int64_t *to) const {
        const int32_t *blocks = step.blocks + step.tables[row];
        for (int64_t token = begin; token < end;) {
            int64_t block = blocks[token / block_size], at = token % block_size;
            int64_t last = end - token < block_size - at ? end - token : block_size - at;
            for (int64_t i = 0; i < last; i++)
                to[token - begin + i] = block * kv_heads * block_size + at + i;
            token += last;
        }
    }

    void write(int64_t row) const {
        for (int64_t token = step.begins[row]; token < step.begins[row + 1]; token++) {
            int64_t to = slot(row, step.starts[row] + token - step.begins[row]);
            for (int64_t head = 0; head < kv_heads; head++, to += block_size) {
                store_one((T *)step.keys + to * key_dim, step.key,
                          head * step.key_head + token * step.key_token, key_dim);
                store_one((T *)step.values + to * value_dim, step.value,
                          head * step.value_head + token * step.value_token, value_dim);
            }
        }
    }

    // A head of a new token, which begins at element `at` of `from`.
    void store_one(T *to, const void *from, int64_t at, int64_t dim) const {
        if (step.type == step.cache_type) {
            std::memcpy(to, (const T *)from + at, dim * sizeof(T));
            return;
        }
        float *line = scratch(0, round_up(dim, LANES));
        convert_from(step.type, line, from, at, dim);
        convert_back(to, line, dim);
    }

    void read_query(float *to, int64_t head, int64_t token) const {
        convert_from(step.type, to, step.query, head * step.query_head + token * step.query_token, key_dim);
    }

    void write_out(int64_t token, int64_t head, const float *from) const {
        convert_to(step.type, step.out, (token * heads + head) * value_dim, from, value_dim);
    }

    int64_t first_seen(int64_t position) const {
        const int64_t of_window = step.window && position >= step.window ? position - step.window + 1 : 0;
        const int64_t of_chunk = step.chunk ? position / step.chunk * step.chunk : 0;
        return of_window > of_chunk ? of_window : of_chunk;
    }

    Floats capped(Floats score) const {
        return step.softcap ? step.softcap * hyperbolic_tangent(score / step.softcap) : score;
    }

    // ---- rows of one new token

    // What is read next: one head of up to `count` tokens. Blocks are scattered and a head's part
    // of a token is short, so that the processor would not guess it.
    struct Next {
        const T *const *tokens;
        int64_t count, offset, dim;

        // Inlined, because GCC drops calls of functions that only prefetch.
        __attribute__((always_inline)) void fetch(int64_t token) const {
            if (token >= count) return;
            const char *at = (const char *)(tokens[token] + offset);
            for (int64_t byte = 0; byte < dim * (int64_t)sizeof(T); byte += 64)
                __builtin_prefetch(at + byte);
        }
    };

    // scores[g * TILE + t] of COUNT tokens and G query heads, summed lane by lane.
    template <int G, int COUNT>
    void dots(const T *const *keys, int64_t offset, const float *queries, float *scores) const {
        Floats acc[COUNT][G] = {};
        int64_t d = 0;
        for (; IS_FP8 && d + 2 * LANES <= key_dim; d += 2 * LANES)
            UNROLLED for (int t = 0; t < COUNT; t++) {
                const Pair key = load_pair(keys[t] + offset + d);
                UNROLLED for (int g = 0; g < G; g++) acc[t][g] += key.first * load(queries + g * key_width + d);
                UNROLLED for (int g = 0; g < G; g++)
                    acc[t][g] += key.second * load(queries + g * key_width + d + LANES);
            }
        for (; d + LANES <= key_dim; d += LANES)
            UNROLLED for (int t = 0; t < COUNT; t++) {
                Floats key = load(keys[t] + offset + d);
                UNROLLED for (int g = 0; g < G; g++) acc[t][g] += key * load(queries + g * key_width + d);
            }
        if (d < key_dim)
            UNROLLED for (int t = 0; t < COUNT; t++) {
                Floats key = load_part(keys[t] + offset + d, (int)(key_dim - d));
                UNROLLED for (int g = 0; g < G; g++) acc[t][g] += key * load(queries + g * key_width + d);
            }
        UNROLLED for (int g = 0; g < G; g++) {
            if constexpr (COUNT == 4)
                store_sums(scores + g * TILE, acc[0][g], acc[1][g], acc[2][g], acc[3][g]);
            else
                UNROLLED for (int t = 0; t < COUNT; t++) scores[g * TILE + t] = sum(acc[t][g]);
        }
    }

    template <int G>
    void scores_of(const T *const *keys, int64_t offset, int64_t count, const float *queries,
                   float *scores, const Next &next) const {
        int64_t t = 0;
        for (; t + 4 <= count; t += 4) {
            UNROLLED for (int i = 0; i < 4; i++) next.fetch(t + i);
            dots<G, 4>(keys + t, offset, queries, scores + t);
        }
        for (; t < count; t++) {
            next.fetch(t);
            dots<G, 1>(keys + t, offset, queries, scores + t);
        }
    }

    // acc[g * value_width + d] += the weighted values of `count` tokens, WIDTH vectors of them.
    template <int G, int WIDTH, bool PART>
    void add_values(const T *const *values, int64_t offset, int64_t count, const float *weights,
                    float *acc, int64_t d, const Next &next) const {
        Floats sums[G][WIDTH];
        UNROLLED for (int g = 0; g < G; g++)
            UNROLLED for (int w = 0; w < WIDTH; w++)
                sums[g][w] = load(acc + g * value_width + d + w * LANES);
        for (int64_t t = 0; t < count; t++) {
            if (d == 0) next.fetch(t);
            const T *from = values[t] + offset + d;
            Floats weight[G];
            UNROLLED for (int g = 0; g < G; g++) weight[g] = spread(weights[g * TILE + t]);
            if constexpr (IS_FP8 && WIDTH > 1) {
                UNROLLED for (int w = 0; w < WIDTH; w += 2) {
                    const Pair value = load_pair(from + w * LANES);
                    UNROLLED for (int g = 0; g < G; g++) sums[g][w] += weight[g] * value.first;
                    UNROLLED for (int g = 0; g < G; g++) sums[g][w + 1] += weight[g] * value.second;
                }
                continue;
            }
            UNROLLED for (int w = 0; w < WIDTH; w++) {
                Floats value = PART ? load_part(from, (int)(value_dim - d)) : load(from + w * LANES);
                UNROLLED for (int g = 0; g < G; g++) sums[g][w] += weight[g] * value;
            }
        }
        UNROLLED for (int g = 0; g < G; g++)
            UNROLLED for (int w = 0; w < WIDTH; w++)
                store(acc + g * value_width + d + w * LANES, sums[g][w]);
    }

    template <int G>
    void weigh(const T *const *values, int64_t offset, int64_t count, const float *weights,
               float *acc, const Next &next) const {
        constexpr int WIDTH = G == 1 ? 8 : 4;
        int64_t d = 0;
        for (; d + WIDTH * LANES <= value_dim; d += WIDTH * LANES)
            add_values<G, WIDTH, false>(values, offset, count, weights, acc, d, next);
        for (; d + LANES <= value_dim; d += LANES)
            add_values<G, 1, false>(values, offset, count, weights, acc, d, next);
        if (d < value_dim) add_values<G, 1, true>(values, offset, count, weights, acc, d, next);
    }

    // The heads of a group, as many at once as fit the registers.
    template <typename Work> void by_heads(Work work) const {
        int64_t g = 0;
        for (; g + HEADS <= group; g += HEADS) work(g, std::integral_constant<int, HEADS>{});
        switch (group - g) {
        case 1: work(g, std::integral_constant<int, 1>{}); break;
        case 2: work(g, std::integral_constant<int, 2>{}); break;
        case 3: work(g, std::integral_constant<int, 3>{}); break;
        }
    }

    // The scores of a tile become weights; returns by how much the sums so far shrink.
    float soften(float *scores, int64_t count, float &most, float &total) const {
        Floats top = spread(NEVER);
        for (int64_t t = count; t % LANES; t++) scores[t] = NEVER;
        for (int64_t t = 0; t < count; t += LANES) {
            Floats score = load(scores + t);
            if (step.softcap) {
                score = score > NEVER / 2 ? capped(score) : score;
                store(scores + t, score);
            }
            top = larger(top, score);
        }
        float now = largest(top);
        now = now > most ? now : most;
        float shrink = exponential(spread(most - now))[0];
        Floats sums{};
        for (int64_t t = 0; t < count; t += LANES) {
            Floats score = load(scores + t);
            Floats weight = score > NEVER / 2 ? exponential(score - now) : Floats{};
            store(scores + t, weight);
            sums += weight;
        }
        total = total * shrink + sum(sums);
        most = now;
        return shrink;
    }

    // The tokens from `begin` to the end of its tile, or to `last`; returns their number.
    int64_t tile(int64_t row, int64_t begin, int64_t last, const T **keys, const T **values) const {
        int64_t end = (begin / TILE + 1) * TILE, at[TILE];
        end = end < last + 1 ? end : last + 1;
        if (begin >= end) return 0;
        slots(row, begin, end, at);
        for (int64_t i = 0; i < end - begin; i++) {
            keys[i] = (const T *)step.keys + at[i] * key_dim;
            values[i] = (const T *)step.values + at[i] * value_dim;
        }
        return end - begin;
    }

    void attend_token(int64_t row, int64_t first_head, int64_t end_head) const {
        const int64_t token = step.begins[row], position = step.starts[row];
        const int64_t num = (end_head - first_head) * group;
        float *queries = scratch(0, num * key_width), *acc = scratch(1, num * value_width);
        float *scores = scratch(2, group * TILE), *most = scratch(3, num), *total = scratch(4, num);
        for (int64_t i = 0; i < num; i++) {
            int64_t head = first_head * group + i;
            float *to = queries + i * key_width;
            read_query(to, head, token);
            for (int64_t d = 0; d < key_dim; d++) to[d] *= step.scale;
            most[i] = step.sinks ? step.sinks[head] : NEVER;
            total[i] = step.sinks ? 1.0f : 0.0f;
        }
        std::memset(acc, 0, num * value_width * sizeof(float));
        // The tokens of this tile and of the next one.
        const T *keys[2][TILE], *values[2][TILE];
        int64_t begin = first_seen(position), count = tile(row, begin, position, keys[0], values[0]);
        for (int now = 0; count; now = !now) {
            begin += count;
            int64_t more = tile(row, begin, position, keys[!now], values[!now]);
            for (int64_t kv = first_head; kv < end_head; kv++) {
                float *q = queries + (kv - first_head) * group * key_width;
                float *a = acc + (kv - first_head) * group * value_width;
                const int64_t key_at = kv * block_size * key_dim, value_at = kv * block_size * value_dim;
                const Next next_values{values[now], count, value_at, value_dim};
                const Next next_keys =
                    kv + 1 < end_head
                        ? Next{keys[now], count, key_at + block_size * key_dim, key_dim}
                        : Next{keys[!now], more, first_head * block_size * key_dim, key_dim};
                by_heads([&](int64_t g, auto G) {
                    scores_of<G>(keys[now], key_at, count, q + g * key_width,
                                 scores + g * TILE, g ? Next{} : next_values);
                });
                for (int64_t g = 0; g < group; g++) {
                    int64_t i = (kv - first_head) * group + g;
                    float shrink = soften(scores + g * TILE, count, most[i], total[i]);
                    if (shrink != 1.0f)
                        for (int64_t d = 0; d < value_width; d++) a[g * value_width + d] *= shrink;
                }
                by_heads([&](int64_t g, auto G) {
                    weigh<G>(values[now], value_at, count, scores + g * TILE,
                             a + g * value_width, g ? Next{} : next_keys);
                });
            }
            count = more;
        }
        for (int64_t i = 0; i < num; i++) {
            float *a = acc + i * value_width;
            for (int64_t d = 0; d < value_dim; d++) a[d] /= total[i];
            write_out(token, first_head * group + i, a);
        }
    }

    // ---- rows of more tokens

    int64_t tokens_per_item() const {
        int64_t tokens = PANELS * PANEL / group;
        return tokens ? tokens : 1;
    }

    // `row_tokens`: the tokens begin:end of a row, counted from its first new one.
    void attend_tile(int64_t row, int64_t kv, int64_t begin, int64_t end) const {
        const int64_t count = (end - begin) * group, panels = round_up(count, PANEL) / PANEL;
        const int64_t start = step.starts[row], first = step.begins[row];
        const int64_t value_rows = round_up(value_dim, TILE_ROWS);
        float *queries = scratch(0, panels * key_dim * PANEL);
        float *acc = scratch(1, panels * value_rows * PANEL);
        float *most = scratch(2, panels * PANEL), *total = scratch(3, panels * PANEL);
        float *position = scratch(4, 2 * panels * PANEL), *oldest = position + panels * PANEL;
        float *keys = scratch(5, TILE * key_width), *values = scratch(6, TILE * (value_rows + LANES));
        float *line = scratch(7, (key_width > value_width ? key_width : value_width) + TILE * PANEL);
        float *scores = line + (key_width > value_width ? key_width : value_width);
        std::memset(queries, 0, panels * key_dim * PANEL * sizeof(float));
        std::memset(acc, 0, panels * value_rows * PANEL * sizeof(float));
        for (int64_t i = 0; i < panels * PANEL; i++) {
            bool real = i < count;
            int64_t token = begin + i / group, head = kv * group + i % group;
            position[i] = real ? (float)(start + token) : -1.0f;  // exact below 2^24
            oldest[i] = real ? (float)first_seen(start + token) : 0.0f;
            most[i] = real && step.sinks ? step.sinks[head] : NEVER;
            total[i] = real && step.sinks ? 1.0f : 0.0f;
            if (!real) continue;
            read_query(line, head, first + token);
            float *to = queries + i / PANEL * key_dim * PANEL + i % PANEL;
            for (int64_t d = 0; d < key_dim; d++) to[d * PANEL] = line[d] * step.scale;
        }
        const int64_t last = start + end - 1;
        int64_t at[TILE];
        for (int64_t t = first_seen(start + begin) / TILE * TILE; t <= last; t += TILE) {
            const int64_t stop = t + TILE < last + 1 ? t + TILE : last + 1;
            const int64_t seen = round_up(stop - t, TILE_ROWS);
            slots(row, t, stop, at);
            std::memset(values, 0, TILE * (value_rows + LANES) * sizeof(float));
            for (int64_t i = 0; i < seen; i++) {
                if (t + i >= stop) {
                    std::memset(keys + i * key_width, 0, key_width * sizeof(float));
                    continue;
                }
                int64_t place = at[i] + kv * block_size;
                convert(keys + i * key_width, (const T *)step.keys + place * key_dim, key_dim);
                convert(line, (const T *)step.values + place * value_dim, value_dim);
                std::memcpy(values + i * value_rows, line, value_dim * sizeof(float));
            }
            for (int64_t panel = 0; panel < panels; panel++) {
                int64_t from = panel * PANEL, to = from + PANEL < count ? from + PANEL : count;
                int64_t low = start + begin + from / group, high = start + begin + (to - 1) / group;
                if (t > high || stop <= first_seen(low)) continue;
                bool is_whole = stop - 1 <= low && t >= first_seen(high) && seen == stop - t &&
                                to - from == PANEL;
                // Up to the last token that any query of the panel sees.
                int64_t wide = high + 1 < stop ? round_up(high + 1 - t, TILE_ROWS) : seen;
                panel_scores(keys, queries + panel * key_dim * PANEL, wide, scores);
                for (int half = 0; half < 2; half++)
                    soften_lanes(scores + half * LANES, wide, t, is_whole, position + from + half * LANES,
                                 oldest + from + half * LANES, most + from + half * LANES,
                                 total + from + half * LANES,
                                 acc + panel * value_rows * PANEL + half * LANES, value_rows);
                panel_values(values, scores, wide, acc + panel * value_rows * PANEL, value_rows);
            }
        }
        for (int64_t i = 0; i < count; i++) {
            const float *from = acc + i / PANEL * value_rows * PANEL + i % PANEL;
            for (int64_t d = 0; d < value_dim; d++) line[d] = from[d * PANEL] / total[i];
            for (int64_t d = value_dim; d < value_width; d++) line[d] = 0;
            write_out(first + begin + i / group, kv * group + i % group, line);
        }
    }

    void panel_scores(const float *keys, const float *queries, int64_t count, float *scores) const {
        for (int64_t t = 0; t < count; t += TILE_ROWS) {
            Floats acc[TILE_ROWS][2] = {};
            multiply<TILE_ROWS>(acc, keys + t * key_width, key_width, 1, queries, key_dim);
            for (int i = 0; i < TILE_ROWS; i++) {
                store(scores + (t + i) * PANEL, acc[i][0]);
                store(scores + (t + i) * PANEL + LANES, acc[i][1]);
            }
        }
    }

    void panel_values(const float *values, const float *weights, int64_t count, float *to,
                      int64_t value_rows) const {
        for (int64_t d = 0; d < value_rows; d += TILE_ROWS) {
            Floats acc[TILE_ROWS][2];
            for (int i = 0; i < TILE_ROWS; i++) {
                acc[i][0] = load(to + (d + i) * PANEL);
                acc[i][1] = load(to + (d + i) * PANEL + LANES);
            }
            multiply<TILE_ROWS>(acc, values + d, 1, value_rows, weights, count);
            for (int i = 0; i < TILE_ROWS; i++) {
                store(to + (d + i) * PANEL, acc[i][0]);
                store(to + (d + i) * PANEL + LANES, acc[i][1]);
            }
        }
    }

    // The scores of LANES queries become weights, and their sums so far shrink.
    void soften_lanes(float *scores, int64_t count, int64_t begin, bool is_whole, const float *position,
                      const float *oldest, float *most, float *total, float *acc, int64_t value_rows) const {
        Floats top = load(most), before = top, at = load(position), from = load(oldest);
        for (int64_t t = 0; t < count; t++) {
            Floats score = load(scores + t * PANEL);
            if (step.softcap) score = capped(score);
            if (!is_whole) {
                float token = (float)(begin + t);
                Ints sees = (at >= token) & (from <= token);
                score = sees ? score : spread(NEVER);
            }
            if (step.softcap || !is_whole) store(scores + t * PANEL, score);
            top = larger(top, score);
        }
        Floats shrink = exponential(before - top), sums{};
        for (int64_t t = 0; t < count; t++) {
            Floats score = load(scores + t * PANEL);
            Floats weight = exponential(score - top);
            if (!is_whole) weight = score > NEVER / 2 ? weight : Floats{};
            store(scores + t * PANEL, weight);
            sums += weight;
        }
        store(most, top);
        store(total, load(total) * shrink + sums);
        for (int64_t d = 0; d < value_rows; d++) store(acc + d * PANEL, load(acc + d * PANEL) * shrink);
    }

    // ---- the step

    struct Item {
        int64_t row, head, begin, end;  // begin < 0: one new token, KV heads head:end
    };

    void run() const {
        static std::vector<Item> items;  // one step at a time
        items.clear();
        for (int64_t row = 0; row < step.rows; row++) {
            write(row);
            int64_t count = step.begins[row + 1] - step.begins[row];
            if (count == 1) {
                int64_t parts = step.threads > 1 && step.rows < 2 * step.threads ? kv_heads : 1;
                for (int64_t part = 0; part < parts; part++)
                    items.push_back({row, part * kv_heads / parts, -1, (part + 1) * kv_heads / parts});
                continue;
            }
            for (int64_t head = 0; head < kv_heads; head++)
                for (int64_t begin = 0; begin < count; begin += tokens_per_item()) {
                    int64_t end = begin + tokens_per_item();
                    items.push_back({row, head, begin, end < count ? end : count});
                }
        }
        shared_threads().run((int)step.threads, (int64_t)items.size(), [this](int64_t number) {
            const Item &item = items[number];
            if (item.begin < 0)
                attend_token(item.row, item.head, item.end);
            else
                attend_tile(item.row, item.head, item.begin, item.end);
        });
        // Rows that only pad the batch are copies: exact copies go to the same experts.
        const int64_t filled = step.begins[step.rows], bytes = heads * value_dim * (step.type ? 2 : 4);
        for (int64_t token = filled; filled && token < step.tokens; token++)
            std::memcpy((char *)step.out + token * bytes, (char *)step.out + (filled - 1) * bytes, bytes);
    }
};

}  // namespace

}  // namespace tdpipe
