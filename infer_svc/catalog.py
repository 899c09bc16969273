"""Models of this replica, as the Open Inference Protocol shows them."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from infer_svc.agent import Agent
from infer_svc.completed import completed, platform_of
from infer_svc.families import InferMetrics
from infer_svc.models import Models
from mesh.oip.catalog import Entry, Model
from mesh.oip.statistics import Sums, add_samples, model_statistics


class ModelCatalog:
    """The models of a replica of infer.

    Args:
        models: that there are.
        agent: loads and unloads them.
        metrics: of all of them.
    """

    def __init__(self, models: Models, agent: Agent, metrics: InferMetrics) -> None:
        self._models = models
        self._agent = agent
        self._metrics = metrics

    def is_ready(self) -> bool:
        """Tell whether any model serves."""
        return bool(self._models.names(ready=True))

    def find(self, name: str, version: str) -> Model:
        """Return a model that serves; as in `mesh.oip.catalog.Catalog`."""
        target = f"{name}/{version}" if version else name
        model = self._models.find(target).model
        config = model.config
        return Model(
            name=name,
            version=str(model.version),
            versions=tuple(self._models.numbers(name)),
            platform=platform_of(config),
            inputs=config.inputs,
            outputs=config.outputs,
            target=target,
            decoupled=config.decoupled,
            labels=dict(config.labels),
            batched=bool(config.max_rows),
        )

    def serves(self, model: Model) -> bool:
        """Tell whether requests to a model are answered: it would not have been found."""
        return bool(model.versions)

    async def config(self, model: Model) -> Any:
        """Return the config of a model, with what was filled in."""
        return completed(self._models.find(model.target).model)

    async def statistics(self, name: str, version: str) -> list[Any]:
        """Return what this replica counted."""
        names = [name] if name else self._models.names(ready=True)
        models = [
            self.find(one, number)
            for one in names
            for number in ([version] if version else self._models.numbers(one))
        ]
        sums = Sums()
        add_samples(sums, self._metrics.collect())
        return [
            model_statistics(
                model.name, model.version, sums.get((model.name, model.version), Counter())
            )
            for model in models
        ]

    async def index(self) -> list[Entry]:
        """Tell of every version of every model."""
        return [Entry(one.name, one.version, one.state, one.reason) for one in self._models.index()]

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load a model, or load it anew, and return once it serves."""
        await self._agent.load(name, parameters)

    async def unload(self, name: str, *, parts: bool) -> None:
        """Serve a model no more; what it runs is answered."""
        await self._agent.unload(name, parts=parts)
