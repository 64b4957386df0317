"""Running an experiment: one comparison for each prompt and seed, kept at once, continued after a stop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from steerserve.client.answers import ServerError
from steerserve.client.served import describe_server
from steerserve.core.errors import ConfigError, InvalidRequestError
from steerserve.core.observer import StoppedError
from steerserve.experiments.samples import Planned, digest, planned

if TYPE_CHECKING:
    from steerserve.client.served import ServerDescription
    from steerserve.client.server_client import AsyncServerClient
    from steerserve.core.observer import Observer
    from steerserve.experiments.experiment import Experiment
    from steerserve.experiments.samples import Record, ResultsFolder

_PROBE = "Hello!"
_MAX_SESSIONS = 100


async def run_experiment(
    experiment: Experiment,
    client: AsyncServerClient,
    folder: ResultsFolder,
    observer: Observer,
    *,
    command: str,
    weights: str | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Make the samples that are missing; return what all samples were made with, as `run.json` has it.

    Args:
        experiment: The experiment to run.
        client: The server's client.
        folder: Folder of the results.
        observer: Sees the progress, and may stop the run.
        command: The command line, for the report.
        weights: SHA-256 of the model's weights, if known.
        replace: Delete the existing samples, once the server has accepted the experiment.

    Raises:
        ConfigError: the server refuses the experiment or cannot be reached, or the folder has another one's samples.
        StoppedError: the observer asked to stop; the same command continues later.
    """
    try:
        served = await describe_server(client)
    except (ServerError, InvalidRequestError) as error:
        raise ConfigError(error.message) from error
    if not served.version:
        raise ConfigError(f"{client.name} is not a steerserve server.")
    experiment.check_model(served.model)
    probe = await _probed(experiment, client)
    setup = _setup(experiment, served, probe, weights)
    if replace:
        folder.clear()
    run = _run(folder, setup, experiment, served, command, weights)
    plan = planned(experiment)
    size = len(experiment.content.arms) * experiment.content.n
    done = folder.repaired({comparison.key: size for comparison in plan})
    folder.begin(run)
    with observer.stage(f"Experiment {experiment.name}", len(plan)) as progress:
        progress.update(len(done))
        for comparison in plan:
            if comparison.key in done:
                continue
            if observer.should_stop():
                raise StoppedError(_so_far("Stopped", len(done), len(plan)))
            try:
                records = await _compared(experiment, client, comparison)
            except ServerError as error:
                raise ConfigError(_so_far(error.message, len(done), len(plan))) from error
            folder.append(records)
            done[comparison.key] = records
            progress.update(len(done))
    return run


def _so_far(reason: str, num_done: int, num_planned: int) -> str:
    kept = f"{num_done} of {num_planned} comparisons are kept; run the same command to continue."
    return f"{reason.rstrip('.')}. {kept}"


async def _probed(experiment: Experiment, client: AsyncServerClient) -> dict[str, Any]:
    """Have every arm generate one token: errors show before the run, and the receipts say what each arm does."""
    body = {
        **_shared(experiment),
        "messages": [{"role": "user", "content": _PROBE}],
        "max_tokens": 1,
        "n": 1,
        "seed": 0,
        "metrics": False,
    }
    try:
        return await client.post("/v1/compare", body)
    except InvalidRequestError as error:
        raise experiment.refusal(error.message, error.param) from error
    except ServerError as error:
        raise ConfigError(error.message) from error


def _shared(experiment: Experiment) -> dict[str, Any]:
    return {"arms": experiment.arms, **experiment.sampling, "store": False}


async def _compared(experiment: Experiment, client: AsyncServerClient, comparison: Planned) -> list[Record]:
    body = {
        **_shared(experiment),
        "messages": comparison.messages,
        "max_tokens": experiment.content.max_tokens,
        "n": experiment.content.n,
        "seed": comparison.seed,
        "by_token": True,
    }
    try:
        answer = await client.post("/v1/compare", body)
    except InvalidRequestError as error:
        raise experiment.refusal(f"prompts[{comparison.prompt}]: {error.message}", error.param) from error
    prompt = experiment.content.prompts[comparison.prompt]
    shared = {
        "key": comparison.key,
        "prompt": prompt if isinstance(prompt, str) else comparison.messages,
        "seed": comparison.seed,
    }
    return [
        {**shared, "arm": arm["name"], "control_of": arm.get("control_of"), **sample}
        for arm in answer["arms"]
        for sample in arm["samples"]
    ]


def _setup(
    experiment: Experiment, served: ServerDescription, probe: dict[str, Any], weights: str | None
) -> dict[str, Any]:
    """Return everything that a sample depends on beside its prompt and seed.

    A fingerprint covers an arm's edits with the contents of their dictionaries, presets and doses. The hash of the
    probe's prompt covers the presets' system prompts and the model's template. The presets' sampling defaults have no
    effect, since the experiment sends its own parameters.
    """
    probed = {arm["name"]: arm for arm in probe["arms"]}
    arms = [
        {
            "name": arm["name"],
            "system": arm.get("system"),
            "control_of": arm.get("control_of"),
            "fingerprint": (probed[arm["name"]]["samples"][0].get("steering") or {}).get("fingerprint"),
            "prompt_sha256": probed[arm["name"]].get("prompt_sha256"),
        }
        for arm in experiment.arms
    ]
    content = experiment.content
    limits = {"n": content.n, "max_tokens": content.max_tokens, **experiment.sampling}
    numbers = {name: served.version.get(name) for name in ("device", "dtype")}
    return {"model": served.model, "weights": weights, **numbers, "arms": arms, **limits}


def _run(
    folder: ResultsFolder,
    setup: dict[str, Any],
    experiment: Experiment,
    served: ServerDescription,
    command: str,
    weights: str | None,
) -> dict[str, Any]:
    """Return the content of `run.json`: the setup, and every session that added samples."""
    before = folder.run() or {}
    earlier = before.get("setup", {})
    if setup["weights"] is None:  # a server does not report its weights, so an earlier value stays
        setup = {**setup, "weights": earlier.get("weights")}
    if before and (differing := _changed(earlier, setup)):
        changed = ", ".join(differing)
        message = (
            f"{folder.path} has samples of another experiment: {changed} differs. Give another folder with --out, or "
            "start again with --replace."
        )
        raise ConfigError(message)
    session = {"started": int(time.time()), "command": command, "versions": _versions(served), "weights": weights}
    return {
        "digest": digest(setup),
        "setup": setup,
        "dictionaries": [
            {key: dictionary.get(key) for key in ("id", "hook", "architecture", "d_sae", "source", "sha256")}
            for dictionary in served.dictionaries
        ],
        "experiment": experiment.text,
        "sessions": [*before.get("sessions", []), session][-_MAX_SESSIONS:],
    }


def _versions(served: ServerDescription) -> dict[str, Any]:
    version = dict(served.version)
    return {"steerserve": version.pop("version", None), **version}


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    changed = [name for name in after if name not in before or before[name] != after[name]]
    if before.get("weights") is None and "weights" in changed:  # they were unknown before
        changed.remove("weights")
    return changed
