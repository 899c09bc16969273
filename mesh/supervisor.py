"""The processes of a mesh on one machine: which there are, and how they find each other."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mesh.crew import GRACE_S, Child, Crew
from mesh.port import PortHold, free_ports
from mesh.process import SOCKETS

STAGES = ("preprocess", "infer", "postprocess")
SERVICES = (*STAGES, "gateway")
FIRST, THEN, LAST = range(3)
"""The order of the end: the gateway's data workers, so that what is under way is answered, the
stages, and what keeps their last spans."""


class Supervisor:
    """Runs the stages at unix sockets, or at ports, and the gateway in front of them.

    Args:
        models: the model repository.
        workers: how many processes of each service; 1 where it is not named.
        environment: for all processes, beside the supervisor's own.
        gateway: `host:port` of the public service.
        report: called with one line for each event worth telling.
        tcp: the stages listen at free ports of 127.0.0.1 and share no memory, as if each was on a
            machine of its own.
        http: `host:port` of the same service over HTTP; empty: none.
        gpus: as `CUDA_VISIBLE_DEVICES` names them; each process of infer sees one, in turn. None
            given: each sees all.
    """

    def __init__(
        self,
        models: Path,
        workers: Mapping[str, int],
        environment: Mapping[str, str],
        gateway: str,
        report: Callable[[str], None],
        tcp: bool = False,
        gpus: Sequence[str] = (),
        http: str = "",
    ) -> None:
        self._tcp = tcp
        self._http = http
        self._gpus = gpus
        self._sockets = tempfile.TemporaryDirectory(prefix=SOCKETS)
        self._holds = [PortHold(address) for address in (gateway, http) if address]
        children = self._plan(models.resolve(), workers, dict(environment), gateway)
        self._crew = Crew(children, report)
        self.children = self._crew.children
        self.failed = self._crew.failed
        """Done when a process cannot start as configured; the text says which."""

    def start(self) -> None:
        """Start every process and keep it running.

        Raises:
            SettingsError: another program listens where the gateway should.
        """
        try:
            for hold in self._holds:
                hold.take()
        except BaseException:
            self._release()
            self._sockets.cleanup()
            raise
        self._crew.start()

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Stop the gateway first, so that what is under way is answered; then the stages."""
        await self._crew.stop(grace_s)
        self._release()
        self._sockets.cleanup()

    def _release(self) -> None:
        for hold in self._holds:
            hold.release()

    def _plan(
        self, models: Path, workers: Mapping[str, int], environment: dict[str, str], gateway: str
    ) -> list[Child]:
        children = []
        addresses = {}
        for stage, binds in self._binds(workers).items():
            prefix = stage.upper()
            addresses[f"GATEWAY_{prefix}"] = ",".join(binds)
            for index, bind in enumerate(binds):
                own = {f"{prefix}_BIND": bind, f"{prefix}_MODELS": str(models)}
                if stage != "infer":
                    own[f"{prefix}_WORKERS"] = "1"
                else:
                    own |= {"INFER_ARENA_MBYTES": "0"} if self._tcp else {}
                    if self._gpus:
                        own["CUDA_VISIBLE_DEVICES"] = self._gpus[index % len(self._gpus)]
                # Stages send their spans to the gateway's store, unless told another place.
                traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{gateway}"}
                name = f"{stage}-{index}"
                children.append(Child(name, f"{stage}_svc", traces | environment | own, THEN))
        own = {
            "GATEWAY_BIND": gateway, "GATEWAY_MODELS": str(models), "GATEWAY_HTTP": self._http,
        }  # fmt: skip
        count, sockets = workers.get("gateway", 1), Path(self._sockets.name)
        return children + gateway_children(count, sockets, environment | addresses | own)

    def _binds(self, workers: Mapping[str, int]) -> dict[str, list[str]]:
        names = {stage: range(workers.get(stage, 1)) for stage in STAGES}
        if self._tcp:
            ports = iter(free_ports(sum(map(len, names.values()))))
            return {stage: [f"127.0.0.1:{next(ports)}" for _ in names[stage]] for stage in STAGES}
        folder = self._sockets.name
        return {
            stage: [f"unix:{folder}/{stage}-{i}.sock" for i in names[stage]] for stage in STAGES
        }


def gateway_children(count: int, sockets: Path, environment: Mapping[str, str]) -> list[Child]:
    """Return the processes of a gateway: its data workers and the control process.

    Args:
        count: of the data workers.
        sockets: folder where they find each other.
        environment: with the gateway's settings.
    """
    common = {"GATEWAY_SOCKETS": str(sockets), "GATEWAY_WORKERS": str(count)}
    workers = [
        Child(
            f"gateway-{index}", "gateway.worker",
            {**environment, **common, "GATEWAY_WORKER": str(index)}, FIRST,
        )
        for index in range(count)
    ]  # fmt: skip
    return [*workers, Child("gateway-control", "gateway.control", {**environment, **common}, LAST)]
