# SPDX-License-Identifier: Apache-2.0
"""The scheduler as it is shipped, linked and stripped, still loads our plugin."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

from xpubuild.cache import Cache
from xpubuild.recipes import volcano

PATIENCE_S = 60
NO_CLUSTER = """\
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
current-context: none
users: [{name: none, user: {}}]
"""


def test_the_scheduler_loads_the_plugin(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(NO_CLUSTER, encoding="utf-8")
    built = volcano.build(Cache())
    argv = [f"{built}/vc-scheduler", f"--plugins-dir={built}/plugins", "--logtostderr", "-v=4"]
    argv += [f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--enable-healthz=false"]
    # Plugins are loaded before it looks for its cluster, for which it would wait without end.
    argv += ["--listen-address=127.0.0.1:0"]
    loaded = f"plugin {volcano.PLUGIN} loaded"
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as scheduler:
        assert scheduler.stderr is not None
        patience = threading.Timer(PATIENCE_S, scheduler.kill)
        patience.start()
        said = []
        for line in scheduler.stderr:
            said.append(line)
            if loaded in line:
                break
        patience.cancel()
        scheduler.kill()
    assert said and loaded in said[-1], "no word of the plugin:\n" + "".join(said)
