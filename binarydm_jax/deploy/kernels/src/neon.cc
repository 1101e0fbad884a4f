#include "scheme.h"
namespace binarydm {
const Path* neon_path() { return nullptr; }
}
