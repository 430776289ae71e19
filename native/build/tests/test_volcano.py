# SPDX-License-Identifier: Apache-2.0
"""The scheduler as it is shipped, linked and stripped, still loads our plugin."""

from __future__ import annotations

import subprocess
from pathlib import Path

from xpubuild.cache import Cache
from xpubuild.recipes import volcano

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
    argv = [built / "vc-scheduler", f"--plugins-dir={built / 'plugins'}", "--logtostderr", "-v=3"]
    argv += [f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--enable-healthz=false"]
    # Plugins are loaded before it looks for its cluster, for which it would wait without end.
    argv += ["--listen-address=127.0.0.1:0"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as scheduler:
        try:
            assert scheduler.stderr is not None
            said = []
            for line in scheduler.stderr:
                said.append(line)
                if f"plugin {volcano.PLUGIN} loaded" in line:
                    break
            else:
                raise AssertionError("no word of the plugin:\n" + "".join(said))
        finally:
            scheduler.kill()
