// The paths that this processor can run.
#pragma once

#include <string_view>
#include <vector>

#include "scheme.h"

namespace binarydm {

// Best first; the portable path is the last.
const std::vector<const Path*>& runnable_paths();

// A runnable path by its name, or null.
const Path* find_path(std::string_view name);

}  // namespace binarydm
