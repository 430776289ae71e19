// SPDX-License-Identifier: Apache-2.0
//
// One thread that waits for doorbells, requests and instants, asks the schedulers, and does what they say.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "conf.h"
#include "http.h"
#include "log.h"
#include "registry.h"
#include "room.h"
#include "scheduler.h"

namespace flexnpu {

struct Reply {
    int status = 200;
    std::string body;
    std::string type = "application/json";
};

class Daemon {
  public:
    // Binds the port and takes the page directory, which one daemon may have; throws std::runtime_error.
    Daemon(const Conf& conf, std::vector<Chip> chips, Log& log);
    ~Daemon();
    Daemon(const Daemon&) = delete;
    Daemon& operator=(const Daemon&) = delete;

    unsigned port() const { return port_; }
    void run(); // until SIGTERM or SIGINT

  private:
    using Place = std::pair<int, int>; // npu and chip
    struct Entry {
        Task task;
        std::unique_ptr<Room> room;
        bool wants = false, holds = false, began = false;
        Nanos until = 0;
        Nanos used_before = 0;
        unsigned percent = 0; // of the chip, in the last second
    };
    struct Seat {
        std::unique_ptr<Scheduler> scheduler;
        Nanos wake = 0;
    };
    struct Connection {
        std::string in;
        Nanos since = 0;
    };

    void enter(const Task& task);
    void leave(const std::string& id);
    void look(Entry& entry, Nanos now);
    void tell(Entry& entry, Event::Kind kind, Nanos now);
    void act(Seat& seat, const std::vector<Action>& actions, Nanos now);
    void tick(Nanos now);
    void second(Nanos now);
    void set_timer(Nanos now);
    Seat& seat(const Task& task) { return seats_.at({task.npu, task.chip}); }

    void accept_one(Nanos now);
    void hear(int connection);
    Reply answer(const Request& request);
    Reply add(const Request& request);
    Reply remove(const Request& request);
    Reply list() const;
    Reply chips() const;
    Reply metrics() const;

    Conf conf_;
    std::vector<Chip> chips_;
    Log& log_;
    std::string token_;
    std::map<std::string, Entry> entries_;
    std::map<int, std::string> bells_; // by descriptor
    std::map<Place, Seat> seats_;
    std::map<int, Connection> connections_;
    Nanos next_second_ = 0;
    unsigned port_ = 0;
    int poll_ = -1, timer_ = -1, signals_ = -1, listener_ = -1, owned_ = -1;
};

} // namespace flexnpu
