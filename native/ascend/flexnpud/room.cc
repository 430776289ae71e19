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

#include "xpu/slice.h"

namespace flexnpu {
namespace {

[[noreturn]] void fail(const std::string& path) {
    throw std::runtime_error("cannot use " + path + ": " + std::strerror(errno));
}

// A page of so many bytes, allocated whole: touching a hole of a full filesystem would be SIGBUS.
template <typename Page>
Page* map_page(const std::string& path, mode_t mode, int& file) {
    file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, mode);
    if (file < 0 || fchmod(file, mode) != 0) fail(path);
    if (const int error = posix_fallocate(file, 0, sizeof(Page)); error != 0) {
        errno = error;
        fail(path);
    }
    void* const mapped = mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) fail(path);
    return static_cast<Page*>(mapped);
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
    int file = -1;
    auto* const config = map_page<xpu_config_page>(directory + "/etc/config.page", 0644, file);
    close(file);
    write_config(*config, task, chip);
    munmap(config, sizeof *config);
    grants_ = map_page<xpu_grant_page>(directory + "/etc/grant.page", 0644, file);
    close(file);
    grants_->cards = 1;
    xpu::shared(grants_->card[0].operators).store(operators);
    sign(*grants_, XPU_GRANT_MAGIC, XPU_GRANT_VERSION);
    set_until(0);
    ledger_ = map_page<xpu_ledger_page>(directory + "/run/ledger.page", 0666, ledger_file_);
    sign(*ledger_, XPU_LEDGER_MAGIC, XPU_PAGES_VERSION);
    requests_ = map_page<xpu_request_page>(directory + "/run/request.page", 0666, requests_file_);
    sign(*requests_, XPU_REQUEST_MAGIC, XPU_GRANT_VERSION);
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
    if (ledger_ != nullptr) munmap(ledger_, sizeof *ledger_);
    if (requests_ != nullptr) munmap(requests_, sizeof *requests_);
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
    const unsigned used = std::min(xpu::shared(requests_->slots_used).load(), XPU_MAX_REQUESTS);
    for (unsigned slot = 0; slot < used; ++slot) {
        const xpu_card_request& request = requests_->process[slot].card[0];
        const bool wants = xpu::shared(request.wants).load() != 0;
        const bool uses = turn != 0 && xpu::shared(request.using_turn).load() == turn;
        seen.launches += xpu::shared(request.launches).load();
        if ((!wants && !uses) || !alive(slot)) continue;
        seen.wants |= wants;
        seen.uses |= uses;
    }
    return seen;
}

std::uint64_t Room::memory_bytes() const {
    std::uint64_t sum = 0;
    const unsigned used = std::min(xpu::shared(ledger_->slots_used).load(), XPU_MAX_PROCESSES);
    for (unsigned slot = 0; slot < used; ++slot) {
        const xpu_process_slot& process = ledger_->process[slot];
        if (xpu::shared(process.owner).load() != 0 && xpu::slot_alive(ledger_file_, slot))
            sum += xpu::shared(process.memory_bytes[0]).load();
    }
    return sum;
}

void remove_room(const std::string& directory) { std::filesystem::remove_all(directory); }

} // namespace flexnpu
