// SPDX-License-Identifier: Apache-2.0
//
// The grant of a slice, wherever it stands: config.page, or, where a node agent other than ours made
// the container, upstream's two text files beside it:
//
//   vgpu.config       UsedMem:<MiB>            of each card; 0 = no limit
//                     UsedCores:<0 to 100>     percent of each card; 0 = no limit
//   vgpu-ids.config   <card's UUID>-<vid>      a line for each virtual card
//
// They become a page in memory, so that everything behind reads one form. They are read once: a
// change of theirs reaches processes that start later.
#ifndef XPU_UPSTREAM_H
#define XPU_UPSTREAM_H

#include <string_view>

#include "xpu/slice.h"

namespace xpu {

// Pure. Anything but kGood leaves `page` undefined.
PageState parse_upstream(std::string_view limits, std::string_view ids,
                         xpu_config_page& page) noexcept;

struct GrantSource {
    const xpu_config_page* page = nullptr; // mapped, or `made`; only when state is kGood
    PageState state = PageState::kAbsent;
    Mapping mapping;      // of config.page, where that is the source
    char file[256] = {}; // which file `state` is about
};

// `made` holds what is made of text files, and lives as long as the result.
GrantSource open_grant(const char* config_page_path, xpu_config_page& made) noexcept;

} // namespace xpu
#endif
