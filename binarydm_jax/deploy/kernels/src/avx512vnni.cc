#include "scheme.h"
namespace binarydm {
const Path* avx512vnni_path() { return nullptr; }
}
