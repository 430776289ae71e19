// SPDX-License-Identifier: Apache-2.0
#include "daemon.h"

#include <algorithm>
#include <arpa/inet.h>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <netinet/in.h>
#include <stdexcept>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

namespace flexnpu {
namespace {

using Json = nlohmann::json;

constexpr Nanos kSecond = 1'000'000'000;
// How often a holder is looked at without being asked: what a killed one costs the others, at most.
constexpr Nanos kPatrol = 10'000'000;
constexpr Nanos kMostConnectionAge = 10 * kSecond;
constexpr std::size_t kMostConnections = 64;

Nanos monotonic_now() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * kSecond + now.tv_nsec;
}

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what + ": " + std::strerror(errno)); }

// One daemon a page directory: two would grant the same card at the same time.
int own(const std::string& directory) {
    std::filesystem::create_directories(directory);
    const int file = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (file < 0) fail("page_dir " + directory);
    if (flock(file, LOCK_EX | LOCK_NB) != 0)
        throw std::runtime_error("page_dir " + directory + " is in use by another flexnpud; stop that one first");
    return file;
}

int listen_on(const std::string& host, unsigned port, unsigned& bound) {
    const bool six = host == "::1";
    sockaddr_in6 address6{};
    sockaddr_in address4{};
    address6.sin6_family = AF_INET6;
    address6.sin6_addr = in6addr_loopback;
    address6.sin6_port = htons(static_cast<std::uint16_t>(port));
    address4.sin_family = AF_INET;
    address4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address4.sin_port = htons(static_cast<std::uint16_t>(port));
    auto* const address = six ? reinterpret_cast<sockaddr*>(&address6) : reinterpret_cast<sockaddr*>(&address4);
    socklen_t size = six ? sizeof address6 : sizeof address4;
    const int listener = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const int yes = 1;
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0) fail("socket");
    if (bind(listener, address, size) != 0 || listen(listener, 64) != 0)
        fail("cannot listen on " + host + " port " + std::to_string(port) + "; choose another port");
    if (getsockname(listener, address, &size) != 0) fail("getsockname");
    bound = ntohs(six ? address6.sin6_port : address4.sin_port);
    return listener;
}

// Empty where no file is configured. One that others may read protects nothing.
std::string read_token(const std::string& path) {
    if (path.empty()) return "";
    struct stat found = {};
    if (stat(path.c_str(), &found) != 0) fail("token_file " + path);
    if ((found.st_mode & 077) != 0)
        throw std::runtime_error("token_file " + path + " may be read by others; chmod 0600 it");
    std::ifstream stream(path);
    std::string token;
    stream >> token;
    if (token.empty()) throw std::runtime_error("token_file " + path + " is empty; put a token there");
    return token;
}

// Takes as long whatever differs.
bool equal(const std::string& one, const std::string& other) {
    unsigned char differs = one.size() == other.size() ? 0 : 1;
    for (std::size_t i = 0; i < one.size(); ++i)
        differs |= static_cast<unsigned char>(one[i] ^ other[i % std::max<std::size_t>(1, other.size())]);
    return differs == 0 && !other.empty();
}

Reply nok(int status, const std::string& message) {
    return {status, Json{{"status", "NOK"}, {"message", message}}.dump() + "\n"};
}

Reply ok(const std::string& message) { return {200, Json{{"status", "OK"}, {"message", message}}.dump() + "\n"}; }

} // namespace

Daemon::Daemon(const Conf& conf, std::vector<Chip> chips, Log& log)
    : conf_(conf), chips_(std::move(chips)), log_(log), token_(read_token(conf.token_file)) {
    owned_ = own(conf_.page_dir);
    poll_ = epoll_create1(EPOLL_CLOEXEC);
    timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    std::signal(SIGPIPE, SIG_IGN);
    signals_ = signalfd(-1, &set, SFD_CLOEXEC);
    listener_ = listen_on(conf_.host, conf_.port, port_);
    for (const int file : {timer_, signals_, listener_}) {
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.fd = file;
        if (poll_ < 0 || epoll_ctl(poll_, EPOLL_CTL_ADD, file, &event) != 0) fail("epoll");
    }
    Policy policy;
    policy.cycle_ns = conf_.schedule_cycle_us * 1000;
    policy.slots = conf_.quota;
    policy.share_in_idle = conf_.share_in_idle;
    for (const Chip& chip : chips_)
        seats_[{chip.npu, chip.chip}].scheduler = std::make_unique<Scheduler>(policy, monotonic_now());
    std::vector<std::string> torn;
    for (const auto& [id, task] : load_tasks(conf_.persistent_file_dir, torn)) {
        Tasks there;
        for (const auto& [other, entry] : entries_) there[other] = entry.task;
        const std::string why = refusal(task, there, chips_, {conf_.quota, conf_.max_size});
        if (!why.empty()) {
            log_.error("ins: " + id + " stays out: " + why);
            continue;
        }
        try {
            enter(task);
        } catch (const std::exception& error) { // its directory is the tenant's too: nobody else's loss
            log_.error("ins: " + id + " stays out: " + error.what());
        }
    }
    for (const std::string& name : torn) log_.error("ins: " + name + " is torn; set aside as .torn, register it again");
}

Daemon::~Daemon() {
    for (const auto& [connection, unused] : connections_) close(connection);
    for (const int file : {poll_, timer_, signals_, listener_, owned_})
        if (file >= 0) close(file);
}

void Daemon::enter(const Task& task) {
    const Chip& chip = *find_chip(chips_, task.npu, task.chip);
    Entry entry;
    entry.task = task;
    entry.room = std::make_unique<Room>(conf_.page_dir + "/" + task.id, task, chip, conf_.quota);
    entry.room->beat(monotonic_now());
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = entry.room->doorbell();
    if (epoll_ctl(poll_, EPOLL_CTL_ADD, event.data.fd, &event) != 0) fail("epoll");
    bells_[event.data.fd] = task.id;
    seat(task).scheduler->add(task.id, task.aicore_alloc, task.priority);
    entries_[task.id] = std::move(entry);
    log_.info("task " + task.id + " of " + task.entity + ": npu " + std::to_string(task.npu) + " chip " +
              std::to_string(task.chip) + ", aicore " + std::to_string(task.aicore_alloc) + " of " +
              std::to_string(conf_.quota) + " slots (" + std::to_string(task.aicore_alloc * 100 / conf_.quota) +
              "%), memory " + std::to_string(task.memory_alloc) + " MB, priority " + std::to_string(task.priority));
    look(entries_[task.id], monotonic_now()); // who waited for an earlier daemon waits still
}

void Daemon::leave(const std::string& id) {
    const auto found = entries_.find(id);
    Seat& place = seat(found->second.task);
    bells_.erase(found->second.room->doorbell());
    place.scheduler->remove(id);
    entries_.erase(found);
    remove_room(conf_.page_dir + "/" + id);
    const Nanos now = monotonic_now();
    act(place, place.scheduler->on({Event::kTick, ""}, now), now);
}

void Daemon::tell(Entry& entry, Event::Kind kind, Nanos now) {
    Seat& place = seat(entry.task);
    act(place, place.scheduler->on({kind, entry.task.id}, now), now);
}

// What the task's processes say, made events of.
void Daemon::look(Entry& entry, Nanos now) {
    const Room::Look seen = entry.room->look();
    if (entry.holds && !entry.began && seen.uses) {
        entry.began = true;
        tell(entry, Event::kBegan, now);
    }
    // Between being woken and using the turn a process still waits; the turn is not over then.
    const bool over = entry.holds && !seen.uses && (now >= entry.until || !seen.wants);
    if (seen.wants != entry.wants && (!entry.holds || over)) {
        entry.wants = seen.wants;
        tell(entry, seen.wants ? Event::kWants : Event::kIdle, now);
    }
    if (!over || !entry.holds) return;
    entry.holds = false;
    entry.room->set_until(0);
    tell(entry, Event::kReturned, now);
}

void Daemon::act(Seat& place, const std::vector<Action>& actions, Nanos now) {
    for (const Action& action : actions) {
        if (action.kind == Action::kWakeAt) {
            place.wake = action.at;
            continue;
        }
        Entry& entry = entries_.at(action.task);
        switch (action.kind) {
        case Action::kGrant:
            entry.holds = true;
            entry.wants = entry.began = false;
            entry.until = action.at;
            entry.room->grant(action.at);
            break;
        case Action::kSet:
            entry.until = action.at;
            entry.room->set_until(action.at);
            break;
        case Action::kRecall:
            entry.until = now;
            entry.room->set_until(0);
            break;
        case Action::kRevoke:
            entry.holds = false;
            entry.room->set_until(0);
            log_.warning("task " + action.task + " did not return its turn; the card goes to the next");
            break;
        case Action::kWakeAt:
            break;
        }
    }
}

void Daemon::tick(Nanos now) {
    for (auto& [id, entry] : entries_)
        if (entry.holds) look(entry, now);
    for (auto& [place, one] : seats_) {
        if (one.wake == 0 || one.wake > now) continue;
        one.wake = 0;
        act(one, one.scheduler->on({Event::kTick, ""}, now), now);
    }
    if (now >= next_second_) second(now);
}

// Once a second: usage for the reports, the sign of life for the tasks, connections that say nothing.
void Daemon::second(Nanos now) {
    const Nanos passed = next_second_ == 0 ? kSecond : now - next_second_ + kSecond;
    next_second_ = now + kSecond;
    for (auto& [id, entry] : entries_) {
        entry.room->beat(now);
        const Nanos used = seat(entry.task).scheduler->used_ns(id);
        entry.percent = static_cast<unsigned>(std::min<Nanos>(100, (used - entry.used_before) * 100 / passed));
        entry.used_before = used;
        if (!entry.holds) look(entry, now); // a bell that got lost costs a second, not for ever
    }
    for (auto at = connections_.begin(); at != connections_.end();) {
        const bool old = now - at->second.since > kMostConnectionAge;
        if (old) close(at->first);
        at = old ? connections_.erase(at) : std::next(at);
    }
}

void Daemon::set_timer(Nanos now) {
    Nanos at = next_second_;
    for (const auto& [place, one] : seats_)
        if (one.wake != 0) at = std::min(at, one.wake);
    const bool held = std::any_of(entries_.begin(), entries_.end(), [](const auto& e) { return e.second.holds; });
    if (held) at = std::min(at, now + kPatrol);
    at = std::max(at, now + 1);
    const itimerspec when{{0, 0}, {at / kSecond, at % kSecond}};
    timerfd_settime(timer_, TFD_TIMER_ABSTIME, &when, nullptr);
}

void Daemon::run() {
    prctl(PR_SET_TIMERSLACK, 1UL); // a cycle is 10 ms; the kernel's usual 50 us would show in every one
    second(monotonic_now());
    while (true) {
        set_timer(monotonic_now());
        epoll_event events[64];
        const int count = epoll_wait(poll_, events, 64, -1);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        const Nanos now = monotonic_now();
        for (int i = 0; i < count; ++i) {
            const int file = events[i].data.fd;
            if (file == signals_) return;
            if (file == listener_) {
                accept_one(now);
            } else if (file == timer_) {
                std::uint64_t expirations = 0;
                (void)!read(timer_, &expirations, sizeof expirations);
            } else if (const auto bell = bells_.find(file); bell != bells_.end()) {
                Entry& entry = entries_.at(bell->second);
                entry.room->hush();
                look(entry, now);
            } else if (connections_.count(file) != 0) {
                hear(file);
            }
        }
        tick(now);
    }
}

void Daemon::accept_one(Nanos now) {
    const int connection = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (connection < 0) return;
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = connection;
    if (connections_.size() >= kMostConnections || epoll_ctl(poll_, EPOLL_CTL_ADD, connection, &event) != 0) {
        close(connection);
        return;
    }
    connections_[connection].since = now;
}

void Daemon::hear(int connection) {
    char bytes[4096];
    const ssize_t got = recv(connection, bytes, sizeof bytes, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    Connection& one = connections_[connection];
    if (got > 0) one.in.append(bytes, static_cast<std::size_t>(got));
    const Parsed parsed = parse_request(one.in);
    if (got > 0 && parsed.state == Parsed::kMore) return;
    if (parsed.state != Parsed::kMore) {
        Reply reply;
        try {
            reply = parsed.state == Parsed::kBad ? nok(parsed.status, parsed.message) : answer(parsed.request);
        } catch (const std::exception& error) {
            log_.error(error.what());
            reply = nok(500, error.what());
        }
        const std::string text = format_response(reply.status, reply.type, reply.body);
        // A local reply fits the socket's buffer; a client that takes none of it loses it.
        (void)!send(connection, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    connections_.erase(connection);
    close(connection);
}

Reply Daemon::answer(const Request& request) {
    if (!token_.empty() && request.path != "/service/health" && !equal("Bearer " + token_, request.authorization))
        return nok(401, "the token is missing or wrong; send 'Authorization: Bearer' and what stands in token_file");
    const auto is = [&](const char* method, const char* path) {
        return request.method == method && request.path == path;
    };
    if (is("POST", "/device/register")) return add(request);
    if (is("POST", "/device/unregister")) return remove(request);
    if (is("GET", "/device/flexnpu-info")) return list();
    if (is("GET", "/device/physical-info")) return chips();
    if (is("GET", "/service/health")) return ok("flexnpud serves " + std::to_string(entries_.size()) + " tasks");
    if (is("GET", "/metrics")) return metrics();
    for (const char* path : {"/device/register", "/device/unregister", "/device/flexnpu-info", "/device/physical-info",
                             "/service/health", "/metrics"})
        if (request.path == path) return nok(405, request.path + " is not served for " + request.method);
    return nok(404, request.path + " is not served");
}

Reply Daemon::add(const Request& request) {
    std::string why;
    const auto task = parse_task(request.body, why);
    if (!task) return nok(400, why);
    Tasks there;
    for (const auto& [id, entry] : entries_) there[id] = entry.task;
    why = refusal(*task, there, chips_, {conf_.quota, conf_.max_size});
    if (!why.empty()) {
        log_.warning("register " + task->id + " refused: " + why);
        return nok(409, why);
    }
    if (there.count(task->id) != 0) return ok(task->id + " is registered already");
    save_task(conf_.persistent_file_dir, *task);
    try {
        enter(*task);
    } catch (...) {
        drop_task(conf_.persistent_file_dir, task->id);
        throw;
    }
    return ok(task->id + " is registered");
}

Reply Daemon::remove(const Request& request) {
    const Json body = Json::parse(request.body, nullptr, false);
    if (!body.is_object() || !body.contains("flexnpu_id") || !body["flexnpu_id"].is_string())
        return nok(400, "the body has no flexnpu_id; send {\"flexnpu_id\": \"…\"}");
    const auto id = body["flexnpu_id"].get<std::string>();
    if (entries_.count(id) == 0) return ok(id + " is not registered");
    drop_task(conf_.persistent_file_dir, id);
    leave(id);
    log_.info("task " + id + " is gone");
    return ok(id + " is unregistered");
}

Reply Daemon::list() const {
    Json all = Json::array();
    for (const auto& [id, entry] : entries_) {
        Json one = Json::parse(format_task(entry.task));
        one["aicore_usage"] = entry.percent;
        one["memory_usage"] = entry.room->memory_bytes() >> 20;
        all.push_back(one);
    }
    return {200, Json{{"status", "OK"}, {"flexnpus", all}}.dump() + "\n"};
}

Reply Daemon::chips() const {
    Tasks tasks;
    for (const auto& [id, entry] : entries_) tasks[id] = entry.task;
    Json all = Json::array();
    for (const Chip& chip : chips_)
        all.push_back({{"npu", chip.npu}, {"chip", chip.chip}, {"die", chip.die}, {"memory", chip.memory_mb},
                       {"quota", conf_.quota}, {"aicore_alloc", allotted_slots(tasks, chip.npu, chip.chip)}});
    return {200, Json{{"status", "OK"}, {"chips", all}}.dump() + "\n"};
}

Reply Daemon::metrics() const {
    std::string used, launches, memory, slots;
    for (const auto& [id, entry] : entries_) {
        const std::string labels = "{flexnpu_id=\"" + id + "\",entity=\"" + entry.task.entity + "\",npu=\"" +
                                   std::to_string(entry.task.npu) + "\",chip=\"" + std::to_string(entry.task.chip) +
                                   "\"} ";
        const Nanos ns = seats_.at({entry.task.npu, entry.task.chip}).scheduler->used_ns(id);
        used += "flexnpu_held_seconds_total" + labels + std::to_string(static_cast<double>(ns) / 1e9) + "\n";
        launches += "flexnpu_operators" + labels + std::to_string(entry.room->look().launches) + "\n";
        memory += "flexnpu_memory_bytes" + labels + std::to_string(entry.room->memory_bytes()) + "\n";
        slots += "flexnpu_aicore_alloc" + labels + std::to_string(entry.task.aicore_alloc) + "\n";
    }
    return {200,
            "# HELP flexnpu_held_seconds_total Time the task held its chip.\n# TYPE flexnpu_held_seconds_total counter\n" +
                used +
                "# HELP flexnpu_operators Operators its living processes started.\n"
                "# TYPE flexnpu_operators gauge\n" +
                launches + "# HELP flexnpu_memory_bytes Memory it holds.\n# TYPE flexnpu_memory_bytes gauge\n" + memory +
                "# HELP flexnpu_aicore_alloc Slots of the cycle it owns.\n# TYPE flexnpu_aicore_alloc gauge\n" + slots,
            "text/plain; version=0.0.4"};
}

} // namespace flexnpu
