// SPDX-License-Identifier: GPL-3.0-or-later
//
// Reading what hardware a simulated host has: a tree like /sys/bus/pci/devices in which a card is
// a directory with `vendor`, `device` and `simgpu` ("key value" lines), and profiles, which are
// files of "key value" lines too.
#pragma once

#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "layout.h"

namespace sim {

using Settings = std::map<std::string, std::string>;

// "key value" lines; '#' starts a comment. Throws std::runtime_error naming `origin` and the line.
Settings parse_settings(const std::string& text, const std::string& origin);

// The whole file; throws std::runtime_error naming it.
std::string read_text(const std::string& path);

struct FoundCard {
  std::string address;  // 0000:3b:00.0
  std::string pci_vendor;
  std::string pci_device;
  int numa_node;
  Settings simulated;  // the card's `simgpu` file
};

// Cards of one vendor ("0x10de") under `pci`, ordered by address; those without `simgpu` are real
// hardware or somebody else's, and not ours.
std::vector<FoundCard> find_cards(const std::string& pci, const std::string& vendor);

// "key value" lines again.
std::string format_settings(const Settings& settings);

// A whole number of some setting; throws naming `origin` and `key`.
std::uint64_t number(const Settings& settings, const std::string& key, const std::string& origin);

// Copies text into a field of CardInfo; throws std::runtime_error naming `what` where it is too long.
template <std::size_t size>
void put(char (&field)[size], const std::string& text, const std::string& what) {
  if (text.size() >= size) {
    throw std::runtime_error(what + " is longer than " + std::to_string(size - 1) + " characters");
  }
  std::memcpy(field, text.c_str(), text.size() + 1);
}

// Fills `info` from a card and its profile's text. Throws on a missing or malformed key.
void describe_card(const FoundCard& card, const std::string& profile_text, std::uint32_t minor,
                   CardInfo& info);

}  // namespace sim
