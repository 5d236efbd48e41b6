// Attention over a KV cache in the type of the activations, and the functions of the library.

#include "attention.h"

namespace tdpipe {

void attend_fp8(const AttentionStep &step);  // attention_fp8.cpp

// Reads the keys and values of all rows once, block by block: the bound of a decode step, for
// benchmarks. Returns a sum, so that nothing is left out.
extern "C" int64_t tdpipe_read(const AttentionStep *step) {
    const int64_t element = step->cache_type == 0 ? 4 : step->cache_type < 3 ? 2 : 1;
    Ints sum{};
    for (int64_t row = 0; row < step->rows; row++) {
        int64_t tokens = step->starts[row] + step->begins[row + 1] - step->begins[row];
        for (int64_t t = 0; t < tokens; t += step->block_size) {
            int64_t block = step->blocks[step->tables[row] + t / step->block_size];
            int64_t count = tokens - t < step->block_size ? tokens - t : step->block_size;
            for (auto [from, dim] : {std::pair(step->keys, step->key_dim), std::pair(step->values, step->value_dim)}) {
                const int64_t bytes = step->kv_heads * dim * element;
                const char *at = (const char *)from + block * step->block_size * bytes;
                for (int64_t i = 0; i + 4 * LANES <= count * bytes; i += 4 * LANES)
                    sum += (Ints)load((const float *)(at + i));
            }
        }
    }
    return sum[0];
}

extern "C" void tdpipe_attend(const AttentionStep *step) {
    switch (step->cache_type) {
    case 0: return Attention<float>(*step).run();
    case 1: return Attention<BFloat16>(*step).run();
    case 2: return Attention<Float16>(*step).run();
    default: return attend_fp8(*step);
    }
}

}  // namespace tdpipe
