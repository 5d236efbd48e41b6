// y = x W^T + b in fp32, with weights of 32 or 16 bits.
//
// The weights are kept in panels of PANEL outputs, `[inputs, PANEL]` each, so that a vector's lanes
// are outputs: every output is summed in the order of the inputs, whatever the number of rows.
// Weights of 16 bits are converted on the way: they take half the memory bandwidth.

#include <algorithm>

#include "threads.h"
#include "vectors.h"

namespace tdpipe {

constexpr int64_t DEPTH = 256;  // inputs of a panel that are converted at once: 16 KB of floats
// Inputs that are summed by themselves, before their sum is added to the others': rounding grows with
// the number of additions in a row, and a sum of 1,536 in one row had twice the error of torch's.
constexpr int64_t PIECE = 128;
constexpr int64_t CACHED_INPUTS = 192 << 10;  // 768 KB of floats: measured with 512 KB of L2 cache
constexpr int64_t LEAST_BLOCK = 96;  // rows; fewer convert each panel too often
constexpr int64_t FEW_ROWS = TILE_ROWS;  // so few rows read the panel directly

extern "C" struct LinearStep {
    const void *input;     // [rows, inputs], rows `input_row` elements apart
    const void *panels;    // [layers]: as tdpipe_pack makes them
    const void *bias;      // [layers, outputs], or null
    const int64_t *begins; // [layers + 1]: the rows begins[i]:begins[i + 1] go through layer i
    void *output;          // [rows, outputs]
    int64_t rows, inputs, outputs, input_row;
    int64_t layers;        // more than one: experts
    int64_t type;          // of all tensors: 0 float32, 1 bfloat16, 2 float16
    int64_t threads;
};

namespace {

template <typename T> void pack(const T *weights, int64_t outputs, int64_t inputs, T *panels) {
    for (int64_t first = 0; first < outputs; first += PANEL)
        for (int64_t k = 0; k < inputs; k++)
            for (int64_t i = 0; i < PANEL; i++)
                *panels++ = first + i < outputs ? weights[(first + i) * inputs + k] : T{};
}

template <int ROWS> inline void add_to(float *sums, const Floats (&acc)[ROWS][2]) {
    for (int i = 0; i < ROWS; i++)
        for (int half = 0; half < 2; half++) {
            float *at = sums + i * PANEL + half * LANES;
            store(at, load(at) + acc[i][half]);
        }
}

template <typename T, int ROWS>
void few(const float *input, const T *panel, int64_t inputs, float *sums) {
    for (int64_t first = 0; first < inputs; first += PIECE) {
        const int64_t end = std::min(first + PIECE, inputs);
        Floats acc[ROWS][2] = {};
        for (int64_t k = first; k < end; k++) {
            Floats left = load(panel + k * PANEL), right = load(panel + k * PANEL + LANES);
            for (int i = 0; i < ROWS; i++) {
                Floats value = spread(input[i * inputs + k]);
                acc[i][0] += value * left;
                acc[i][1] += value * right;
            }
        }
        add_to<ROWS>(sums, acc);
    }
}

template <typename T, int ROWS = TILE_ROWS>
void few_of(int64_t rows, const float *input, const T *panel, int64_t inputs, float *sums) {
    if (rows == ROWS) return few<T, ROWS>(input, panel, inputs, sums);
    if constexpr (ROWS > 1) few_of<T, ROWS - 1>(rows, input, panel, inputs, sums);
}

template <int ROWS>
void add(const float *input, const float *panel, int64_t inputs, int64_t depth, float *sums) {
    for (int64_t first = 0; first < depth; first += PIECE) {
        Floats acc[ROWS][2] = {};
        multiply<ROWS>(acc, input + first, inputs, 1, panel + first * PANEL,
                       std::min(PIECE, depth - first));
        add_to<ROWS>(sums, acc);
    }
}

template <int ROWS = TILE_ROWS>
void add_of(int64_t rows, const float *input, const float *panel, int64_t inputs, int64_t depth,
            float *sums) {
    if (rows == ROWS) return add<ROWS>(input, panel, inputs, depth, sums);
    if constexpr (ROWS > 1) add_of<ROWS - 1>(rows, input, panel, inputs, depth, sums);
}

template <typename T>
void many(const float *input, const T *panel, int64_t rows, int64_t inputs, float *sums) {
    float *converted = scratch(1, DEPTH * PANEL);
    for (int64_t k = 0; k < inputs; k += DEPTH) {
        int64_t depth = inputs - k < DEPTH ? inputs - k : DEPTH;
        convert(converted, panel + k * PANEL, depth * PANEL);
        for (int64_t row = 0; row < rows; row += TILE_ROWS)
            add_of(rows - row < TILE_ROWS ? rows - row : TILE_ROWS, input + row * inputs + k, converted,
                   inputs, depth, sums + row * PANEL);
    }
}

// So many rows that their inputs stay in the L2 cache while all panels pass by.
inline int64_t rows_per_block(int64_t inputs) {
    const int64_t fitting = CACHED_INPUTS / inputs / TILE_ROWS * TILE_ROWS;
    return fitting < LEAST_BLOCK ? LEAST_BLOCK : fitting;
}

// Rows that pass through the same layer, as many as one item of work takes.
struct Block {
    int64_t layer, begin, count;
};

std::vector<Block> blocks_of(const LinearStep &step) {
    const int64_t most = rows_per_block(step.inputs);
    std::vector<Block> blocks;
    for (int64_t layer = 0; layer < step.layers; layer++)
        for (int64_t row = step.begins[layer]; row < step.begins[layer + 1]; row += most)
            blocks.push_back({layer, row, std::min(most, step.begins[layer + 1] - row)});
    return blocks;
}

// The outputs of one panel for the rows of a block; `input` has all rows as floats.
template <typename T>
void multiply_panel(const LinearStep &step, const float *input, const Block &block, int64_t number) {
    const int64_t inputs = step.inputs, outputs = step.outputs, first = number * PANEL;
    const int64_t panels = block.layer * (round_up(outputs, PANEL) / PANEL) + number;
    const T *panel = (const T *)step.panels + panels * inputs * PANEL;
    float *sums = scratch(0, block.count * PANEL);
    std::memset(sums, 0, block.count * PANEL * sizeof(float));
    input += block.begin * inputs;
    if (block.count <= FEW_ROWS)
        few_of(block.count, input, panel, inputs, sums);
    else
        many(input, panel, block.count, inputs, sums);
    const int width = (int)std::min(outputs - first, (int64_t)PANEL);
    float bias[PANEL] = {};
    if (step.bias) convert(bias, (const T *)step.bias + block.layer * outputs + first, width);
    for (int64_t row = 0; row < block.count; row++) {
        float *from = sums + row * PANEL;
        for (int half = 0; half < PANEL; half += LANES)
            store(from + half, load(from + half) + load(bias + half));
        convert_back((T *)step.output + (block.begin + row) * outputs + first, from, width);
    }
}

template <typename T> void linear(const LinearStep &step) {
    const int64_t rows = step.rows, inputs = step.inputs;
    static std::vector<float> input;  // one step at a time
    if ((int64_t)input.size() < rows * inputs + LANES) input.resize(rows * inputs + LANES);
    for (int64_t row = 0; row < rows; row++)
        convert(input.data() + row * inputs, (const T *)step.input + row * step.input_row, inputs);
    const std::vector<Block> blocks = blocks_of(step);
    const int64_t panels = round_up(step.outputs, PANEL) / PANEL;
    const int64_t share = rows * inputs * step.outputs > 1 << 18 ? step.threads : 1;
    const int64_t per_item = panels * (int64_t)blocks.size() / (4 * share) + 1;
    const int64_t groups = (panels + per_item - 1) / per_item;  // of panels
    shared_threads().run((int)share, (int64_t)blocks.size() * groups, [&](int64_t item) {
        const int64_t first = item % groups * per_item;
        for (int64_t p = first; p < std::min(panels, first + per_item); p++)
            multiply_panel<T>(step, input.data(), blocks[item / groups], p);
    });
}

}  // namespace

extern "C" int64_t tdpipe_packed_elements(int64_t outputs, int64_t inputs) {
    return round_up(outputs, PANEL) * inputs;
}

extern "C" void tdpipe_pack(const void *weights, int64_t outputs, int64_t inputs, int64_t type,
                            void *panels) {
    if (type == 0)
        pack((const uint32_t *)weights, outputs, inputs, (uint32_t *)panels);
    else
        pack((const uint16_t *)weights, outputs, inputs, (uint16_t *)panels);
}

extern "C" void tdpipe_linear(const LinearStep *step) {
    switch (step->type) {
    case 0: return linear<float>(*step);
    case 1: return linear<BFloat16>(*step);
    case 2: return linear<Float16>(*step);
    }
}

}  // namespace tdpipe
