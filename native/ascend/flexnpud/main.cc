// SPDX-License-Identifier: Apache-2.0
//
// flexnpud [CONF]: shares the NPUs of this host among registered tasks. CONF is ./flexnpud.conf where none is
// given; paths in it are relative to where the daemon is started.
#include <cstdio>
#include <exception>
#include <fstream>
#include <sstream>

#include "chips.h"
#include "conf.h"
#include "daemon.h"
#include "log.h"

int main(int count, char** words) {
    using namespace flexnpu;
    if (count > 2) {
        std::fprintf(stderr, "usage: flexnpud [CONF]\n");
        return 2;
    }
    try {
        const std::string path = count == 2 ? words[1] : "./flexnpud.conf";
        std::ifstream stream(path);
        if (!stream) throw ConfError("cannot read " + path + "; name the configuration file");
        std::ostringstream text;
        text << stream.rdbuf();
        const Conf conf = parse_conf(text.str(), path);
        Log log(conf);
        try {
            Daemon daemon(conf, find_chips(conf.dcmi_lib_file), log);
            log.info("flexnpud listens on " + conf.host + " port " + std::to_string(daemon.port()));
            daemon.run();
            log.info("flexnpud ends");
        } catch (const std::exception& error) {
            log.error(error.what());
            throw;
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "flexnpud: %s\n", error.what());
        return 1;
    }
    return 0;
}
