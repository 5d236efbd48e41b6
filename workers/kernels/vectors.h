// Vectors of floats as wide as the machine's, and the element types that are converted to them.
//
// GCC's and clang's vector extensions: the same source serves AVX2, AVX-512 and NEON, because it is
// compiled on the machine that runs it (-march=native).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Before a loop whose variables are to stay in registers.
#define UNROLLED _Pragma("GCC unroll 16")

namespace tdpipe {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int TILE_ROWS = 12;  // 24 accumulators of 32 registers
#elif defined(__AVX__)
constexpr int LANES = 8;
constexpr int TILE_ROWS = 6;  // 12 accumulators of 16 registers
#else
constexpr int LANES = 4;
constexpr int TILE_ROWS = 6;
#endif
constexpr int PANEL = 2 * LANES;  // columns of a register tile

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(2 * LANES)));

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};
// Sign, exponent and mantissa in a byte, as torch's float8_e4m3fn (its only special value is NaN) and
// float8_e5m2 (the upper half of a Float16).
struct Float8E4M3 {
    uint8_t bits;
};
struct Float8E5M2 {
    uint8_t bits;
};

inline Floats spread(float value) { return value - Floats{}; }

inline Floats load(const float *from) {
    Floats values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

inline Floats load(const BFloat16 *from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
#elif defined(__AVX2__)
    return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16);
#else
    Halves bits;
    std::memcpy(&bits, from, sizeof bits);
    return (Floats)(__builtin_convertvector(bits, Words) << 16);
#endif
}

inline Floats load(const Float16 *from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif defined(__F16C__)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else
    Floats values;
    for (int i = 0; i < LANES; i++) {
        _Float16 value;
        std::memcpy(&value, from + i, sizeof value);
        values[i] = (float)value;
    }
    return values;
#endif
}

// LANES bytes, in the upper halves of 16 bits.
inline Halves load_upper(const void *from) {
#if defined(__AVX512F__)
    return (Halves)_mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)from)), 8);
#elif defined(__AVX__)
    return (Halves)_mm_unpacklo_epi8(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i *)from));
#else
    Halves values;
    for (int i = 0; i < LANES; i++) values[i] = (uint16_t)(((const uint8_t *)from)[i] << 8);
    return values;
#endif
}

// Floats of 16 bits, which need not be in memory.
inline Floats widened(Halves bits) {
    return load((const Float16 *)&bits);
}

inline Floats load(const Float8E5M2 *from) { return widened(load_upper(from)); }

// By way of Float16, whose exponent counts from 8 less: its conversion costs nothing more for small
// values, where a product of floats would (with denormal operands).
inline Floats load(const Float8E4M3 *from) {
    Halves halves = (Halves)((Shorts)load_upper(from) >> 1) & 0xbf80;
    halves |= (Halves)((halves | 0x8000) == 0xbf80);  // NaN
    return widened(halves) * 256.0f;
}

struct Pair {
    Floats first, second;
};

// Two vectors, one behind the other.
template <typename T> inline Pair load_pair(const T *from) { return {load(from), load(from + LANES)}; }

#if defined(__AVX2__) && defined(__F16C__) && !defined(__AVX512F__)
// Integers fill whole registers here: 13 instructions in place of 16.
inline Pair load_pair(const Float8E4M3 *from) {
    typedef uint16_t Many __attribute__((vector_size(32)));
    Many bytes = (Many)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)from));
    Many halves = (bytes << 7) & 0xbf80;
    halves |= (Many)((halves | 0x8000) == 0xbf80);
    __m128i upper = _mm256_extracti128_si256((__m256i)halves, 1);
    return {(Floats)_mm256_cvtph_ps(_mm256_castsi256_si128((__m256i)halves)) * 256.0f,
            (Floats)_mm256_cvtph_ps(upper) * 256.0f};
}
#endif

// The first `count` elements; the other lanes are 0.
template <typename T> inline Floats load_part(const T *from, int count) {
    T part[LANES] = {};
    std::memcpy(part, from, count * sizeof(T));
    return load(part);
}

inline void store(float *to, Floats values) { std::memcpy(to, &values, sizeof values); }

// The values rounded to bfloat16, in the upper halves: to the nearest, ties to even, as torch does.
inline Words rounded_bits(Floats values) {
    Words bits = (Words)values;
    Words rounded = bits + 0x7fff + ((bits >> 16) & 1);
    return values == values ? rounded : (Words)(Words{} + 0x7fc00000);  // NaN
}

inline void store(BFloat16 *to, Floats values) {
    Words upper = rounded_bits(values) >> 16;
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16((__m512i)upper));
#elif defined(__AVX2__)
    // GCC 12 makes 20 instructions of __builtin_convertvector here.
    __m128i low = _mm256_castsi256_si128((__m256i)upper), high = _mm256_extracti128_si256((__m256i)upper, 1);
    _mm_storeu_si128((__m128i *)to, _mm_packus_epi32(low, high));
#else
    Halves halves = __builtin_convertvector(upper, Halves);
    std::memcpy(to, &halves, sizeof halves);
#endif
}

inline void store(Float16 *to, Floats values) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)values, 0));
#elif defined(__F16C__)
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)values, 0));
#else
    for (int i = 0; i < LANES; i++) {
        _Float16 value = (_Float16)values[i];
        std::memcpy(to + i, &value, sizeof value);
    }
#endif
}

// The values rounded to a byte of MANTISSA bits: to the nearest, ties to even, at most `most`, and
// NaN stays NaN. As torch, but for the values beyond `most`.
template <int MANTISSA, int BIAS> inline void store_bytes(uint8_t *to, Floats values, float most) {
    constexpr int shift = 23 - MANTISSA;
    constexpr uint32_t smallest = (127 + 1 - BIAS) << 23;           // of the normal numbers
    constexpr uint32_t unit = (127 + 1 - BIAS - MANTISSA + 23) << 23;  // its last bit is that of small ones
    Words bits = (Words)values, size = bits & 0x7fffffff;
    Words limit = (Words)spread(most), nan = (Words)(size > 0x7f800000u);
    size = size > limit ? limit : size;
    Words normal = (size + ((1 << (shift - 1)) - 1) + ((size >> shift) & 1) - ((127 - BIAS) << 23)) >> shift;
    Words small = (Words)((Floats)size + (Floats)(Words{} + unit)) - unit;
    Words rounded = (size < smallest ? small : normal) | (nan & 0x7f) | ((bits >> 24) & 0x80);
    for (int i = 0; i < LANES; i++) to[i] = (uint8_t)rounded[i];
}

inline void store(Float8E4M3 *to, Floats values) { store_bytes<3, 7>(&to->bits, values, 448.0f); }

inline void store(Float8E5M2 *to, Floats values) { store_bytes<2, 15>(&to->bits, values, 57344.0f); }

// The values as they are after a store in this type.
template <typename T> inline Floats rounded(Floats values) {
    if constexpr (std::is_same_v<T, float>) return values;
    if constexpr (std::is_same_v<T, BFloat16>) return (Floats)(rounded_bits(values) & 0xffff0000u);
    T stored[LANES];
    store(stored, values);
    return load(stored);
}

template <typename T> inline void store_part(T *to, Floats values, int count) {
    T part[LANES];
    store(part, values);
    std::memcpy(to, part, count * sizeof(T));
}

// Convert `count` elements; up to the next multiple of LANES, `to` is filled with zeros.
template <typename T> inline void convert(float *to, const T *from, int64_t count) {
    int64_t at = 0;
    for (; at + LANES <= count; at += LANES) store(to + at, load(from + at));
    if (at < count) store(to + at, load_part(from + at, (int)(count - at)));
}

template <typename T> inline void convert_back(T *to, const float *from, int64_t count) {
    int64_t at = 0;
    for (; at + LANES <= count; at += LANES) store(to + at, load(from + at));
    if (at < count) store_part(to + at, load_part(from + at, (int)(count - at)), (int)(count - at));
}

inline float sum(Floats values) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)values);
#elif defined(__AVX__)
    __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)values),
                             _mm256_extractf128_ps((__m256)values, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
#else
    float total = 0;
    for (int i = 0; i < LANES; i++) total += values[i];
    return total;
#endif
}

// The sums of four vectors.
inline void store_sums(float *to, Floats a, Floats b, Floats c, Floats d) {
#if defined(__AVX__) && !defined(__AVX512F__)
    __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps((__m256)a, (__m256)b), _mm256_hadd_ps((__m256)c, (__m256)d));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
#else
    to[0] = sum(a), to[1] = sum(b), to[2] = sum(c), to[3] = sum(d);
#endif
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline float largest(Floats values) {
    float found = values[0];
    for (int i = 1; i < LANES; i++) found = values[i] > found ? values[i] : found;
    return found;
}

// exp(x) for x up to 88, with a relative error below 2e-7; below -87 it is exp(-87).
// Coefficients: Cephes' expf (S. Moshier).
inline Floats exponential(Floats x) {
    x = larger(x, spread(-87.0f));
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    Floats shifted = x * 1.44269504f + magic;
    Floats power = shifted - magic;
    Floats r = x - power * 0.693359375f;
    r = r - power * -2.12194440e-4f;
    Floats y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    return (Floats)((Words)y + ((Words)shifted << 23));
}

inline Floats hyperbolic_tangent(Floats x) {
    Floats positive = x < 0.0f ? -x : x;
    Floats below = 1.0f - 2.0f / (exponential(2.0f * (positive > 40.0f ? spread(40.0f) : positive)) + 1.0f);
    Floats square = x * x;  // near 0 the difference above loses digits
    Floats series = positive * (1.0f + square * (-0.333333333f + square * (0.133333333f - square * 0.053968254f)));
    Floats result = positive < 0.25f ? series : below;
    return x < 0.0f ? -result : result;
}

constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// acc[i][0..1] += a[i * a_row] * b[0..PANEL): one column of the left matrix times one row of the
// right one, for each of `count` steps.
template <int ROWS>
inline void multiply(Floats (&acc)[ROWS][2], const float *a, int64_t a_row, int64_t a_step,
                     const float *b, int64_t count) {
    for (int64_t k = 0; k < count; k++) {
        Floats left = load(b + k * PANEL), right = load(b + k * PANEL + LANES);
        UNROLLED for (int i = 0; i < ROWS; i++) {
            Floats value = spread(a[i * a_row + k * a_step]);
            acc[i][0] += value * left;
            acc[i][1] += value * right;
        }
    }
}

}  // namespace tdpipe
