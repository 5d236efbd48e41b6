// Attention over a KV cache in fp8; a source of its own, because both are compiled at once.

#include "attention.h"

namespace tdpipe {

void attend_fp8(const AttentionStep &step) {
    switch (step.cache_type) {
    case 3: return Attention<Float8E4M3>(step).run();
    case 4: return Attention<Float8E5M2>(step).run();
    }
}

}  // namespace tdpipe
