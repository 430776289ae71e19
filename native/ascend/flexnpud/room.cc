// SPDX-License-Identifier: Apache-2.0
#include "room.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <linux/futex.h>
#include <stdexcept>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>

#include "xpu/slice.h"

namespace flexnpu {
namespace {

[[noreturn]] void fail(const std::string& path) {
    throw std::runtime_error("cannot use " + path + ": " + std::strerror(errno));
}

// A file of so many bytes, allocated whole: touching a hole of a full filesystem would be SIGBUS.
int open_page(const std::string& path, mode_t mode, std::size_t bytes) {
    const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, mode);
    struct stat found = {};
    if (file < 0 || fstat(file, &found) != 0) fail(path);
    errno = EINVAL; // in the tenant's directory it may be anything
    if (!S_ISREG(found.st_mode) || fchmod(file, mode) != 0) fail(path);
    errno = posix_fallocate(file, 0, static_cast<off_t>(bytes));
    if (errno != 0) fail(path);
    return file;
}

// Of a page that only we can write, or make shorter.
template <typename Page>
Page* map_page(const std::string& path) {
    const int file = open_page(path, 0644, sizeof(Page));
    void* const mapped = mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) fail(path);
    return static_cast<Page*>(mapped);
}

// Of the tenant's pages, which are read and never mapped: he can cut them off at any moment, and touching a
// mapping beyond the end is SIGBUS. What isn't there reads as nothing.
template <typename Part>
std::vector<Part> parts_at(int file, std::size_t offset, std::size_t count) {
    std::vector<Part> parts(count);
    const ssize_t got = pread(file, parts.data(), count * sizeof(Part), static_cast<off_t>(offset));
    parts.resize(got <= 0 ? 0 : static_cast<std::size_t>(got) / sizeof(Part));
    return parts;
}

template <typename Page>
unsigned slots_used(int file, unsigned most) {
    const auto used = parts_at<std::uint32_t>(file, offsetof(Page, slots_used), 1);
    return used.empty() ? 0 : std::min(used.front(), most);
}

void sign(int file, const std::string& path, std::uint32_t magic, std::uint32_t version) {
    const std::uint32_t head[] = {magic, version};
    if (pwrite(file, head, sizeof head, 0) != static_cast<ssize_t>(sizeof head)) fail(path);
}

// Two times the same: a page left by an earlier daemon is kept, as processes have it mapped.
template <typename Page>
void sign(Page& page, std::uint32_t magic, std::uint32_t version) {
    page.version = version;
    page.magic = magic;
}

void write_config(xpu_config_page& page, const Task& task, const Chip& chip) {
    auto& epoch = xpu::shared(page.epoch);
    epoch.fetch_or(1);
    xpu_card_config card = {};
    std::memcpy(card.uuid, chip.die.data(), std::min(chip.die.size(), sizeof card.uuid - 1));
    card.memory_bytes = task.memory_alloc << 20;
    card.tau_ns = XPU_DEFAULT_TAU_NS;
    card.mode = XPU_MODE_NONE; // time is the grant page's business
    page.card[0] = card;
    page.cards = 1;
    sign(page, XPU_CONFIG_MAGIC, XPU_PAGES_VERSION);
    epoch.fetch_add(1);
}

} // namespace

Room::Room(const std::string& directory, const Task& task, const Chip& chip, unsigned operators)
    : directory_(directory) {
    std::filesystem::create_directories(directory + "/etc");
    std::filesystem::create_directories(directory + "/run");
    // Any user of the container may run the task's processes.
    if (chmod((directory + "/run").c_str(), 0755) != 0) fail(directory + "/run");
    auto* const config = map_page<xpu_config_page>(directory + "/etc/config.page");
    write_config(*config, task, chip);
    munmap(config, sizeof *config);
    grants_ = map_page<xpu_grant_page>(directory + "/etc/grant.page");
    grants_->cards = 1;
    xpu::shared(grants_->card[0].operators).store(operators);
    sign(*grants_, XPU_GRANT_MAGIC, XPU_GRANT_VERSION);
    set_until(0);
    const std::string ledger = directory + "/run/ledger.page", requests = directory + "/run/request.page";
    ledger_file_ = open_page(ledger, 0666, sizeof(xpu_ledger_page));
    sign(ledger_file_, ledger, XPU_LEDGER_MAGIC, XPU_PAGES_VERSION);
    requests_file_ = open_page(requests, 0666, sizeof(xpu_request_page));
    sign(requests_file_, requests, XPU_REQUEST_MAGIC, XPU_GRANT_VERSION);
    const std::string fifo = directory + "/run/request.fifo";
    if (mkfifo(fifo.c_str(), 0666) != 0 && errno != EEXIST) fail(fifo);
    // Open for both: as the only reader it would be told of an end whenever the last process goes.
    fifo_ = open(fifo.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
    if (fifo_ < 0 || fchmod(fifo_, 0666) != 0) fail(fifo);
}

Room::~Room() {
    if (grants_ != nullptr) {
        set_until(0);
        munmap(grants_, sizeof *grants_);
    }
    for (const int file : {fifo_, requests_file_, ledger_file_})
        if (file >= 0) close(file);
}

void Room::hush() const {
    char bytes[256];
    while (read(fifo_, bytes, sizeof bytes) > 0) {
    }
}

void Room::changed() {
    auto& word = xpu::shared(grants_->card[0].word);
    word.fetch_add(1);
    syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void Room::grant(std::int64_t until_ns) {
    xpu::shared(grants_->card[0].turn).fetch_add(1);
    set_until(until_ns);
}

void Room::set_until(std::int64_t until_ns) {
    xpu::shared(grants_->card[0].until_ns).store(until_ns);
    changed();
}

void Room::beat(std::int64_t now_ns) { xpu::shared(grants_->beat_ns).store(now_ns); }

bool Room::alive(unsigned slot) const {
    struct flock range = {};
    range.l_type = F_WRLCK;
    range.l_whence = SEEK_SET;
    range.l_start = static_cast<off_t>(offsetof(xpu_request_page, process) + slot * sizeof(xpu_process_request));
    range.l_len = 1;
    return fcntl(requests_file_, F_GETLK, &range) != 0 || range.l_type != F_UNLCK;
}

Room::Look Room::look() const {
    Look seen;
    const std::uint64_t turn = xpu::shared(grants_->card[0].turn).load();
    const unsigned used = slots_used<xpu_request_page>(requests_file_, XPU_MAX_REQUESTS);
    const auto slots = parts_at<xpu_process_request>(requests_file_, offsetof(xpu_request_page, process), used);
    for (unsigned slot = 0; slot < slots.size(); ++slot) {
        const xpu_card_request& request = slots[slot].card[0];
        const bool wants = request.wants != 0;
        const bool uses = turn != 0 && request.using_turn == turn;
        seen.launches += request.launches;
        if ((!wants && !uses) || !alive(slot)) continue;
        seen.wants |= wants;
        seen.uses |= uses;
    }
    return seen;
}

std::uint64_t Room::memory_bytes() const {
    std::uint64_t sum = 0;
    const unsigned used = slots_used<xpu_ledger_page>(ledger_file_, XPU_MAX_PROCESSES);
    const auto slots = parts_at<xpu_process_slot>(ledger_file_, offsetof(xpu_ledger_page, process), used);
    for (unsigned slot = 0; slot < slots.size(); ++slot)
        if (slots[slot].owner != 0 && xpu::slot_alive(ledger_file_, slot)) sum += slots[slot].memory_bytes[0];
    return sum;
}

void remove_room(const std::string& directory) { std::filesystem::remove_all(directory); }

} // namespace flexnpu
