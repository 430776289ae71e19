# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The Kubernetes API as plain data, for modules that run on the controller."""

from __future__ import annotations

import json
import os
import typing as t

from ._errors import XpuError

MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
NOT_FOUND, TOO_MANY_REQUESTS = 404, 429
Object = t.Dict[str, t.Any]
NODES = "/api/v1/nodes"
RUNTIME_CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"
# RuntimeClass → handler, as slices need them. cri-dockerd knows one handler only, which is Docker's
# default runtime.
HANDLERS = {"nvidia": "nvidia", "flexai-xpu": "nvidia-cdi", "flexai-xpu-docker": "docker"}
# Annotation of a node: label → [the value we set, the value of before or null].
LABELS_RECORD = "flexai.io/labels"
# Every object that we make bears this; without it an object is somebody else's.
OWNER = {"app.kubernetes.io/part-of": "flexai.xpu"}


def is_ours(thing: Object) -> bool:
    labels = thing["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in OWNER.items())


def _why_not(body: str) -> str:
    """The API server's own words about an eviction that it refused."""
    try:
        status = json.loads(body)
    except ValueError:
        return body
    causes = (status.get("details") or {}).get("causes") or []
    said = [str(cause["message"]) for cause in causes if cause.get("message")]
    return "; ".join(said) or str(status.get("message") or body)


class Cluster:
    """Requests by path; what comes back is what the API server said, as dictionaries."""

    def __init__(self, client: t.Any, where: str) -> None:
        self._client, self._where = client, where

    def _request(self, method: str, path: str, body: Object | None = None, **more: t.Any) -> Object:
        answer = self._client.request(method, path, body=body, serialize=False, **more)
        return dict(json.loads(answer.data))

    def _failure(self, verb: str, path: str, error: Exception) -> XpuError:
        said = getattr(error, "body", None) or str(error)
        try:
            said = json.loads(said)["message"]
        except (ValueError, KeyError, TypeError):
            pass
        return XpuError(
            f"{verb} {path} at the cluster of {self._where} failed: {said}.",
            "check that the API server answers and that the kubeconfig's user may do this.",
        )

    def get(self, path: str, **more: t.Any) -> Object | None:
        """An object; None where there is none."""
        try:
            return self._request("get", path, **more)
        except Exception as error:
            if getattr(error, "status", None) == NOT_FOUND:
                return None
            raise self._failure("get", path, error) from error

    def list(self, path: str, **more: t.Any) -> list[Object]:
        """The items of a collection, chosen by ``field_selector=`` and the like; none where the
        cluster has no such kind."""
        found = self.get(path, **more)
        return list(found["items"]) if found else []

    def kinds_in_namespaces(self) -> t.Iterator[tuple[str, str]]:
        """(path of the collection with ``{namespace}`` in it, kind) of all that can be listed."""
        groups = (self.get("/apis") or {}).get("groups", ())
        bases = ["/api/v1", *(f"/apis/{g['preferredVersion']['groupVersion']}" for g in groups)]
        for base in bases:
            for entry in (self.get(base) or {}).get("resources", ()):
                if entry["namespaced"] and "list" in entry["verbs"]:
                    yield f"{base}/namespaces/{{namespace}}/{entry['name']}", entry["kind"]

    def change(self, verb: str, path: str, body: Object | None = None) -> Object:
        """``post``, ``patch`` (a merge patch) or ``delete``."""
        more = {"content_type": MERGE_PATCH} if verb == "patch" else {}
        try:
            return self._request(verb, path, body, **more)
        except Exception as error:
            raise self._failure(verb, path, error) from error

    def apply(self, path: str, body: Object, manager: str, force: bool = False) -> Object:
        """Server-side, as *manager*; a field that another holds is taken with *force*, and is an
        error that names him without."""
        try:
            # As text: the client writes no dictionaries for this content type.
            answer = self._client.request(
                "patch",
                path,
                body=json.dumps(body),
                serialize=False,
                content_type=APPLY_PATCH,
                field_manager=manager,
                force_conflicts=force,
            )
        except Exception as error:
            raise self._failure("apply", path, error) from error
        return dict(json.loads(answer.data))

    def evict(self, namespace: str, pod: str) -> str:
        """Ask for an eviction; what stands in its way (a disruption budget), else empty."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        name = {"name": pod, "namespace": namespace}
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": name}
        try:
            self._request("post", path, body)
        except Exception as error:
            if getattr(error, "status", None) == NOT_FOUND:
                return ""
            if getattr(error, "status", None) == TOO_MANY_REQUESTS:
                return _why_not(str(getattr(error, "body", "") or error))
            raise self._failure("post", path, error) from error
        return ""

    def log(self, namespace: str, pod: str) -> str:
        return self.text(f"/api/v1/namespaces/{namespace}/pods/{pod}/log")

    def text(self, path: str) -> str:
        """What isn't JSON: a log, or what a pod answers through the API server."""
        try:
            answer = self._client.request("get", path, serialize=False)
        except Exception as error:
            raise self._failure("get", path, error) from error
        return str(answer.data.decode(errors="replace"))


def connect(kubeconfig: str) -> Cluster:
    """A cluster by its kubeconfig on this machine."""
    try:
        from kubernetes import config
        from kubernetes.dynamic import DynamicClient
    except ImportError as error:
        raise XpuError(
            f"The Python library kubernetes is not there on the controller: {error}.",
            "pip install -r requirements/collection.txt of this collection.",
        ) from error
    if not os.path.exists(kubeconfig):
        raise XpuError(
            f"The kubeconfig {kubeconfig!r} (flexai_kubeconfig) does not exist on the controller.",
            "correct flexai_kubeconfig, or leave it empty for a site without a cluster.",
        )
    try:
        return Cluster(DynamicClient(config.new_client_from_config(kubeconfig)), kubeconfig)
    except Exception as error:
        raise XpuError(
            f"The cluster of kubeconfig {kubeconfig} does not answer: {error}.",
            "check the server's address in it, and that the API server runs.",
        ) from error
