// SPDX-License-Identifier: Apache-2.0
//
// A task's directory: the pages its container maps, and the doorbell.
//
//   <page_dir>/<flexnpu_id>/etc/config.page   what it may use (xpu/pages.h)         mounted read-only
//                          /etc/grant.page    its turns (xpu_ascend/grant_page.h)   at /etc/xpu
//                          /run/ledger.page   what it uses                          mounted read-write
//                          /run/request.page  who of it waits, who uses the turn    at /run/xpu
//                          /run/request.fifo  doorbell
//
// What lies there outlives the daemon, as the container's processes have it mapped.
#pragma once

#include <cstdint>
#include <string>

#include "registry.h"
#include "xpu_ascend/grant_page.h"

namespace flexnpu {

class Room {
  public:
    // Makes what is missing. Throws std::runtime_error naming the file.
    Room(const std::string& directory, const Task& task, const Chip& chip, unsigned operators);
    ~Room();
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;

    int doorbell() const { return fifo_; }
    void hush() const; // reads the bytes that were rung

    void grant(std::int64_t until_ns); // begins a turn
    void set_until(std::int64_t until_ns); // of the turn there is; 0 ends it
    void beat(std::int64_t now_ns);

    // What the container's living processes say.
    struct Look {
        bool wants = false;
        bool uses = false; // the present turn
        std::uint64_t launches = 0;
    };
    Look look() const;
    std::uint64_t memory_bytes() const; // by the ledger's slots of living processes

  private:
    bool alive(unsigned slot) const;
    void changed();

    std::string directory_;
    int fifo_ = -1, requests_file_ = -1, ledger_file_ = -1;
    xpu_grant_page* grants_ = nullptr;
};

void remove_room(const std::string& directory);

} // namespace flexnpu
