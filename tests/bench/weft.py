"""Weft for the peer benchmark: one sidecar per role, in static mode, with the policy that its role needs.

Load with BENCH_ADAPTERS=<this directory>; SIDECAR_BIN names the weft-sidecar binary. The certificates are the
harness's own; the services are called `svc` in namespace `bench`."""
import os
from adapters import Base

MESH = """apiVersion: weft.mesh/v1alpha1
kind: MeshPolicy
metadata: {{ name: mesh, namespace: bench }}
spec: {{ trustDomain: mesh.test, mtls: {{ mode: strict }} }}
"""
CACHE = """---
apiVersion: weft.mesh/v1alpha1
kind: CachePolicy
metadata: { name: svc, namespace: bench }
spec: { targetRefs: [{ kind: Service, name: svc }], where: outbound }
"""
WORKLOAD = """---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {{ name: {name}, namespace: bench }}
spec:
  serviceAccount: {name}
{rest}"""


def workload(name, rest):
    return WORKLOAD.format(name=name, rest="".join(f"  {line}\n" for line in rest))


class Adapter(Base):
    roles = {"out": {"h1", "h2", "tcp"}, "in": {"h1", "h2", "tcp"}, "plain": {"h1", "h2", "tcp"},
             "cache": {"h1"}}
    bin = os.environ.get("SIDECAR_BIN", "")

    def missing(self):
        return None if os.path.exists(self.bin) else "SIDECAR_BIN is not set"

    def start(self, c):
        proto = {"h1": "http", "h2": "grpc", "tcp": "tcp"}[c.proto]
        port = f"ports: [{{ port: 80, appPort: {c.up}, appProtocol: {proto} }}]"
        listen = f'upstreams: [{{ listen: "127.0.0.1:{c.listen}", service: svc, port: 80 }}]'
        text = MESH.format()
        if c.role == "in":
            text += workload("b", ["service: svc", port])
        else:
            text += workload("a", [listen])
            where = f'inbound: "127.0.0.1:{c.up}"' if c.role == "out" else "mesh: false"
            text += workload("b", ["service: svc", port, where])
        if c.role == "cache":
            text += CACHE
        os.makedirs(f"{c.dir}/policy", exist_ok=True)
        c.write("policy/mesh.yaml", text)
        me = "b" if c.role == "in" else "a"
        inbound = f"127.0.0.1:{c.listen}" if c.role == "in" else "127.0.0.1:0"
        return c.spawn([
            self.bin, "--policy", f"{c.dir}/policy", "--namespace", "bench", "--workload", me,
            "--service-account", me, "--trust-domain", "mesh.test",
            "--cert-file", f"{c.certs}/{me}.crt", "--key-file", f"{c.certs}/{me}.key", "--ca-file", f"{c.certs}/ca.crt",
            "--outbound", "127.0.0.1:0", "--inbound", inbound, "--admin", "127.0.0.1:0", "--metrics", "127.0.0.1:0",
            "--workers", str(c.threads), "--log", "warn",
        ])
