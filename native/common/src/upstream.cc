// SPDX-License-Identifier: Apache-2.0
#include "xpu/upstream.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

#include "xpu/place.h"

namespace xpu {
namespace {

constexpr std::uint64_t kMostMiB = std::uint64_t{1} << 40;
constexpr std::size_t kMostText = 4096;

// What follows the first `count` characters. Not substr(), which would throw, here: abort.
std::string_view after(std::string_view text, std::size_t count) noexcept {
    text.remove_prefix(std::min(count, text.size()));
    return text;
}

// Takes the first line off `text`; the last one may lack its line end.
std::string_view take_line(std::string_view& text) noexcept {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line(text.data(), end);
    text = after(text, end + 1);
    return line;
}

bool number(std::string_view text, std::uint64_t most, std::uint64_t& value) noexcept {
    value = 0;
    for (const char digit : text) {
        if (digit < '0' || digit > '9') return false;
        value = value * 10 + static_cast<std::uint64_t>(digit - '0');
        if (value > most) return false;
    }
    return !text.empty();
}

bool field(std::string_view line, std::string_view name, std::uint64_t most,
           std::uint64_t& value) noexcept {
    return line.size() > name.size() && std::memcmp(line.data(), name.data(), name.size()) == 0 &&
           number(after(line, name.size()), most, value);
}

// A UUID holds hyphens itself, so the last one ends it.
bool identity(std::string_view line, xpu_card_config& card) noexcept {
    const std::size_t hyphen = line.rfind('-');
    std::uint64_t vid = 0;
    if (hyphen == std::string_view::npos || hyphen == 0 || hyphen >= sizeof card.uuid ||
        !number(after(line, hyphen + 1), UINT32_MAX, vid) ||
        std::memchr(line.data(), '\0', hyphen) != nullptr)
        return false;
    std::memcpy(card.uuid, line.data(), hyphen);
    card.vid = static_cast<std::uint32_t>(vid);
    return true;
}

bool listed(const xpu_config_page& page, const xpu_card_config& card) noexcept {
    return std::any_of(page.card, page.card + page.cards, [&](const xpu_card_config& other) {
        return std::strcmp(other.uuid, card.uuid) == 0;
    });
}

// The same grant as gpu-device-plugin writes into config.page for these figures.
xpu_card_config limited(std::uint64_t memory_mib, std::uint64_t percent) noexcept {
    xpu_card_config card = {};
    card.memory_bytes = memory_mib << 20;
    card.tau_ns = XPU_DEFAULT_TAU_NS;
    card.cores_percent = static_cast<std::uint32_t>(percent);
    card.mode = percent == 0 || percent == 100 ? XPU_MODE_NONE : XPU_MODE_HARD;
    return card;
}

struct Text {
    char bytes[kMostText];
    std::size_t length = 0;
    PageState state = PageState::kAbsent;
    std::string_view view() const noexcept { return {bytes, length}; }
};

void read_text(const char* path, Text& text) noexcept {
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) {
        text.state = state_of_open_error(errno);
        return;
    }
    ssize_t got = 0;
    for (;;) {
        got = read(file, text.bytes + text.length, sizeof text.bytes - text.length);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        text.length += static_cast<std::size_t>(got);
    }
    close(file);
    text.state = got < 0 ? PageState::kUnreadable : PageState::kGood;
    // Longer than any file of theirs: nothing of it is believed, rather than its first part.
    if (text.length == sizeof text.bytes) text.length = 0;
}

void name_file(GrantSource& source, const char* path) noexcept {
    const std::size_t length = std::min(std::strlen(path), sizeof source.file - 1);
    std::memcpy(source.file, path, length);
    source.file[length] = '\0';
}

// Leaves `source` as it is when upstream's files are not there either.
void open_upstream(const char* config_page_path, xpu_config_page& made,
                   GrantSource& source) noexcept {
    char limits_path[256], ids_path[256];
    if (!name_beside(config_page_path, "vgpu.config", limits_path) ||
        !name_beside(config_page_path, "vgpu-ids.config", ids_path))
        return;
    Text limits, ids;
    read_text(limits_path, limits);
    if (limits.state == PageState::kAbsent) return;
    name_file(source, limits_path);
    source.state = limits.state;
    if (source.state != PageState::kGood) return;
    read_text(ids_path, ids);
    source.state = ids.state == PageState::kAbsent ? PageState::kNoIds : ids.state;
    if (source.state == PageState::kGood)
        source.state = parse_upstream(limits.view(), ids.view(), made);
    if (source.state == PageState::kGood) source.page = &made;
    else if (source.state != PageState::kBadLimits) name_file(source, ids_path);
}

} // namespace

PageState parse_upstream(std::string_view limits, std::string_view ids,
                         xpu_config_page& page) noexcept {
    std::uint64_t memory_mib = 0, percent = 0;
    if (!field(take_line(limits), "UsedMem:", kMostMiB, memory_mib) ||
        !field(take_line(limits), "UsedCores:", 100, percent) || !limits.empty())
        return PageState::kBadLimits;
    page = {};
    page.magic = XPU_CONFIG_MAGIC;
    page.version = XPU_PAGES_VERSION;
    while (!ids.empty()) {
        xpu_card_config card = limited(memory_mib, percent);
        if (!identity(take_line(ids), card)) return PageState::kBadIds;
        // Two virtual cards on one card share one grant: which of them a call means can't be told.
        if (listed(page, card)) continue;
        if (page.cards == XPU_MAX_CARDS) return PageState::kBadIds;
        page.card[page.cards++] = card;
    }
    return page.cards == 0 ? PageState::kBadIds : PageState::kGood;
}

GrantSource open_grant(const char* config_page_path, xpu_config_page& made) noexcept {
    GrantSource source;
    name_file(source, config_page_path);
    source.mapping = map_config(config_page_path);
    source.state = source.mapping.state;
    if (source.state == PageState::kGood) {
        source.page = static_cast<const xpu_config_page*>(source.mapping.base);
    } else if (source.state == PageState::kAbsent) {
        open_upstream(config_page_path, made, source);
    }
    return source;
}

} // namespace xpu
