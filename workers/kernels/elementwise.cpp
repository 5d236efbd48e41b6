// What stands between the matrix products of a layer: RMSNorm, the rotary embedding, gated activations.
//
// torch runs each of them as five to ten operations, which write their intermediate results to
// memory. Here a row is read once and written once, and is rounded where torch rounds it.

#include <cmath>

#include "threads.h"
#include "vectors.h"

namespace tdpipe {

constexpr int64_t SMALL = 1 << 14;  // elements that are not worth a second thread

extern "C" struct NormStep {
    const void *input;   // [rows, width], contiguous
    const void *weight;  // [width], or null: 1
    void *output;        // [rows, width]
    int64_t rows, width;
    int64_t type;        // of all tensors: 0 float32, 1 bfloat16, 2 float16
    int64_t rounds;      // whether the normalised values are rounded before the weights are applied
    int64_t threads;
    float epsilon;
    float offset;        // is added to the weights
};

extern "C" struct RotaryStep {
    const void *input;      // element [head, token, i] at head * input_head + token * input_token + i
    const void *cos, *sin;  // [tokens, rotated], rows `angle_row` elements apart
    void *output;           // [tokens, heads, dim]
    int64_t input_head, input_token, angle_row;
    int64_t heads, tokens, dim;
    int64_t rotated;        // leading values of a head that are rotated: i with i + rotated / 2
    int64_t type;           // of input and output
    int64_t wide_angles;    // whether cos and sin are float32, whatever `type` is
    int64_t rounds;         // whether the products are rounded before they are added
    int64_t threads;
};

extern "C" struct GatedStep {
    const void *input;   // [rows, 2 * width]: the gate, then what it multiplies
    void *output;        // [rows, width]
    int64_t rows, width;
    int64_t type;        // of all tensors
    int64_t activation;  // 0 SiLU, 1 GELU by its tanh formula
    int64_t threads;
};

namespace {

// `work(at, width)` for each vector of `count` elements; the last one may be narrower.
template <typename Work> inline void by_lanes(int64_t count, Work work) {
    int64_t at = 0;
    for (; at + LANES <= count; at += LANES) work(at, LANES);
    if (at < count) work(at, (int)(count - at));
}

template <typename T> inline Floats load_up_to(const T *from, int width) {
    return width == LANES ? load(from) : load_part(from, width);
}

template <typename T> inline void store_up_to(T *to, Floats values, int width) {
    width == LANES ? store(to, values) : store_part(to, values, width);
}

// `work(row)` for each row, on several threads where there is enough to do.
template <typename Work> void by_rows(int64_t rows, int64_t width, int64_t threads, Work work) {
    const int64_t share = rows * width > SMALL ? threads : 1;
    const int64_t per_item = rows / (4 * share) + 1;
    shared_threads().run((int)share, (rows + per_item - 1) / per_item, [&](int64_t item) {
        const int64_t end = (item + 1) * per_item < rows ? (item + 1) * per_item : rows;
        for (int64_t row = item * per_item; row < end; row++) work(row);
    });
}

template <typename T> void norm(const NormStep &step) {
    const int64_t width = step.width;
    by_rows(step.rows, width, step.threads, [&](int64_t row) {
        const T *from = (const T *)step.input + row * width, *weights = (const T *)step.weight;
        T *to = (T *)step.output + row * width;
        Floats squares{};
        by_lanes(width, [&](int64_t at, int count) {
            Floats value = load_up_to(from + at, count);
            squares += value * value;
        });
        const float scale = 1.0f / std::sqrt(sum(squares) / (float)width + step.epsilon);
        by_lanes(width, [&](int64_t at, int count) {
            Floats value = load_up_to(from + at, count) * scale;
            if (step.rounds) value = rounded<T>(value);
            if (weights) value *= load_up_to(weights + at, count) + step.offset;
            store_up_to(to + at, value, count);
        });
    });
}

template <typename T, typename Angle> void rotate(const RotaryStep &step) {
    const int64_t half = step.rotated / 2;
    auto round = [&](Floats product) { return step.rounds ? rounded<T>(product) : product; };
    by_rows(step.tokens, step.heads * step.dim, step.threads, [&](int64_t token) {
        const Angle *cos = (const Angle *)step.cos + token * step.angle_row;
        const Angle *sin = (const Angle *)step.sin + token * step.angle_row;
        for (int64_t head = 0; head < step.heads; head++) {
            const T *from = (const T *)step.input + head * step.input_head + token * step.input_token;
            T *to = (T *)step.output + (token * step.heads + head) * step.dim;
            by_lanes(half, [&](int64_t at, int count) {
                const int64_t there = at + half;
                Floats left = load_up_to(from + at, count), right = load_up_to(from + there, count);
                Floats turned_left = round(left * load_up_to(cos + at, count)) -
                                     round(right * load_up_to(sin + at, count));
                Floats turned_right = round(right * load_up_to(cos + there, count)) +
                                      round(left * load_up_to(sin + there, count));
                store_up_to(to + at, turned_left, count);
                store_up_to(to + there, turned_right, count);
            });
            std::memcpy(to + step.rotated, from + step.rotated, (step.dim - step.rotated) * sizeof(T));
        }
    });
}

inline Floats activated(Floats x, int64_t activation) {
    if (activation == 0) {
        Floats negative = x * -1.0f;  // the exponential is exact enough up to 88 only
        return x / (1.0f + exponential(negative < 88.0f ? negative : spread(88.0f)));
    }
    Floats inner = 0.79788456f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + hyperbolic_tangent(inner));
}

template <typename T> void gated(const GatedStep &step) {
    const int64_t width = step.width;
    by_rows(step.rows, width, step.threads, [&](int64_t row) {
        const T *gate = (const T *)step.input + row * 2 * width, *up = gate + width;
        T *to = (T *)step.output + row * width;
        by_lanes(width, [&](int64_t at, int count) {
            Floats value = rounded<T>(activated(load_up_to(gate + at, count), step.activation));
            store_up_to(to + at, value * load_up_to(up + at, count), count);
        });
    });
}

}  // namespace

extern "C" void tdpipe_norm(const NormStep *step) {
    switch (step->type) {
    case 0: return norm<float>(*step);
    case 1: return norm<BFloat16>(*step);
    case 2: return norm<Float16>(*step);
    }
}

extern "C" void tdpipe_rotate(const RotaryStep *step) {
    switch (step->type) {
    case 0: return rotate<float, float>(*step);
    case 1: return step->wide_angles ? rotate<BFloat16, float>(*step) : rotate<BFloat16, BFloat16>(*step);
    case 2: return step->wide_angles ? rotate<Float16, float>(*step) : rotate<Float16, Float16>(*step);
    }
}

extern "C" void tdpipe_gated(const GatedStep *step) {
    switch (step->type) {
    case 0: return gated<float>(*step);
    case 1: return gated<BFloat16>(*step);
    case 2: return gated<Float16>(*step);
    }
}

}  // namespace tdpipe
