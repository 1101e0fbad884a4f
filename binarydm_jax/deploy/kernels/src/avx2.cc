#include "scheme.h"
namespace binarydm {
const Path* avx2_path() { return nullptr; }
}
