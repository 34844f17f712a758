#include "token_attention.h"

#include "instruction_set.h"

namespace fastcond::cpu {

#define DECLARE(set)                                        \
    namespace set {                                         \
    void token_attention(const TokenAttention&);            \
    void token_attention_backward(const TokenAttention&);   \
    }
FASTCOND_FOR_EACH_INSTRUCTION_SET(DECLARE)
#undef DECLARE

void token_attention(const TokenAttention& call) { FASTCOND_DISPATCH(token_attention, call) }
void token_attention_backward(const TokenAttention& call) { FASTCOND_DISPATCH(token_attention_backward, call) }

}  // namespace fastcond::cpu
