// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "xpu/slice.h"

namespace xpu {
namespace {

constexpr int kReadAttempts = 64;
constexpr int kWriterNaps = 20;

// A copy by atomic words: the writer may be at work, and what is torn is thrown away by epoch.
void copy_words(xpu_config_page& to, const xpu_config_page& from) noexcept {
    static_assert(sizeof(xpu_config_page) % sizeof(std::uint32_t) == 0);
    const auto* source = reinterpret_cast<const std::uint32_t*>(&from);
    auto* target = reinterpret_cast<std::uint32_t*>(&to);
    for (std::size_t word = 0; word < sizeof to / sizeof *target; ++word)
        target[word] = shared(source[word]).load(std::memory_order_relaxed);
}

bool valid(const xpu_card_config& card) noexcept {
    return std::memchr(card.uuid, '\0', sizeof card.uuid) != nullptr && card.uuid[0] != '\0' &&
           card.cores_percent <= 100 && card.mode <= XPU_MODE_PRIORITY &&
           card.effective_q16 <= 100u << 16 &&
           std::uint64_t{card.window_start_us} + card.window_us <= card.frame_us;
}

// A hole gets its block when it is first touched, even by reading on a tmpfs; where the filesystem is
// full that is SIGBUS, in the application. So holes are filled now, or the file is not used.
bool has_holes(int fd, std::size_t bytes, bool writable) noexcept {
    const off_t hole = lseek(fd, 0, SEEK_HOLE);
    if (hole < 0 || hole >= static_cast<off_t>(bytes)) return false; // dense, or it can't be told
    return !writable || fallocate(fd, 0, 0, static_cast<off_t>(bytes)) != 0;
}

Mapping map_file(const char* path, int flags, int protection, std::size_t bytes) noexcept {
    Mapping mapping;
    // O_NONBLOCK: should it be a pipe, nobody waits for its other end.
    mapping.fd = open(path, flags | O_CLOEXEC | O_NONBLOCK);
    if (mapping.fd < 0) {
        mapping.state = state_of_open_error(errno);
        return mapping;
    }
    struct stat found = {};
    if (fstat(mapping.fd, &found) != 0 || found.st_size < static_cast<off_t>(bytes)) {
        mapping.state = PageState::kTooShort;
    } else if (has_holes(mapping.fd, bytes, (protection & PROT_WRITE) != 0)) {
        mapping.state = PageState::kHoles;
    } else {
        void* base = mmap(nullptr, bytes, protection, MAP_SHARED, mapping.fd, 0);
        mapping.state = base == MAP_FAILED ? state_of_open_error(errno) : PageState::kGood;
        mapping.base = base == MAP_FAILED ? nullptr : base;
    }
    return mapping;
}

void drop_fd(Mapping& mapping) noexcept {
    if (mapping.fd >= 0) close(mapping.fd);
    mapping.fd = -1;
}

PageState take(const xpu_config_page& copy, std::uint32_t epoch, Config& out) noexcept {
    const PageState state = check(copy);
    if (state != PageState::kGood) return state;
    out.epoch = epoch;
    out.cards = copy.cards;
    std::memcpy(out.card, copy.card, sizeof out.card);
    return state;
}

} // namespace

PageState state_of_open_error(int error) noexcept {
    switch (error) {
    case ENOENT:
    case ENOTDIR: return PageState::kAbsent;
    case EMFILE:
    case ENFILE:
    case ENOMEM: return PageState::kExhausted;
    default: return PageState::kUnreadable;
    }
}

const char* describe(PageState state) noexcept {
    switch (state) {
    case PageState::kGood: return "good";
    case PageState::kAbsent: return "does not exist";
    case PageState::kUnreadable: return "cannot be opened";
    case PageState::kExhausted: return "cannot be opened now, for lack of descriptors or memory";
    case PageState::kTooShort: return "is shorter than its layout";
    case PageState::kHoles: return "has holes, and the filesystem no room to fill them";
    case PageState::kWrongMagic: return "does not begin with the magic number";
    case PageState::kWrongVersion: return "has another layout version";
    case PageState::kInvalid: return "holds values out of range";
    case PageState::kBeingWritten: return "is being written without end";
    case PageState::kBadLimits: return "is not two lines UsedMem:<MiB> and UsedCores:<0 to 100>";
    case PageState::kBadIds: return "is not lines of <UUID of a card>-<number> for 1 to 16 cards";
    case PageState::kNoIds: return "does not exist, though vgpu.config beside it does";
    }
    return "unknown";
}

PageState check(const xpu_config_page& page) noexcept {
    if (page.magic != XPU_CONFIG_MAGIC) return PageState::kWrongMagic;
    if (page.version != XPU_PAGES_VERSION) return PageState::kWrongVersion;
    if (page.cards > XPU_MAX_CARDS || !std::all_of(page.card, page.card + page.cards, valid))
        return PageState::kInvalid;
    return PageState::kGood;
}

PageState read_config(const xpu_config_page& page, Config& out) noexcept {
    xpu_config_page copy;
    for (int attempt = 0; attempt < kReadAttempts; ++attempt) {
        const std::uint32_t before = shared(page.epoch).load(std::memory_order_acquire);
        copy_words(copy, page);
        std::atomic_thread_fence(std::memory_order_acquire);
        if (before % 2 != 0 || shared(page.epoch).load(std::memory_order_relaxed) != before)
            continue;
        return take(copy, before, out);
    }
    return PageState::kBeingWritten;
}

PageState await_config(const xpu_config_page& page, Config& out) noexcept {
    PageState state = read_config(page, out);
    for (int nap = 0; state == PageState::kBeingWritten && nap < kWriterNaps; ++nap) {
        const timespec millisecond = {0, 1'000'000};
        (void)nanosleep(&millisecond, nullptr);
        state = read_config(page, out);
    }
    if (state != PageState::kBeingWritten) return state;
    xpu_config_page copy;
    const std::uint32_t epoch = shared(page.epoch).load(std::memory_order_acquire);
    copy_words(copy, page);
    return take(copy, epoch, out);
}

Mapping map_config(const char* path) noexcept {
    Mapping mapping = map_file(path, O_RDONLY, PROT_READ, sizeof(xpu_config_page));
    drop_fd(mapping);
    return mapping;
}

Mapping map_ledger(const char* path, bool writable) noexcept {
    Mapping mapping = writable ? map_file(path, O_RDWR, PROT_READ | PROT_WRITE,
                                          sizeof(xpu_ledger_page))
                               : map_file(path, O_RDONLY, PROT_READ, sizeof(xpu_ledger_page));
    if (mapping.state == PageState::kGood) {
        const auto* page = static_cast<const xpu_ledger_page*>(mapping.base);
        if (page->magic != XPU_LEDGER_MAGIC) mapping.state = PageState::kWrongMagic;
        else if (page->version != XPU_PAGES_VERSION) mapping.state = PageState::kWrongVersion;
    }
    if (mapping.state != PageState::kGood) {
        unmap(mapping, sizeof(xpu_ledger_page));
        drop_fd(mapping);
    }
    return mapping;
}

void unmap(Mapping& mapping, std::size_t bytes) noexcept {
    if (mapping.base != nullptr) munmap(mapping.base, bytes);
    mapping.base = nullptr;
}

} // namespace xpu
