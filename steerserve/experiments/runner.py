"""Running an experiment: one comparison for each prompt and seed, kept as it comes, gone on with after a stop."""

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
    """Make the samples that are not there yet; return what all were made with, as `run.json` has it.

    Args:
        experiment: What to run.
        client: Whom to ask.
        folder: Where samples are, and go.
        observer: Sees the progress, and may stop it.
        command: The command line, for the report.
        weights: sha256 of the model's weights, where it is known.
        replace: Forget the samples that are there, once it is sure that new ones can be made.

    Raises:
        ConfigError: the server refuses the experiment or went away, or the folder has samples of another.
        StoppedError: the observer asked for it; the same command goes on.
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
    wanted = planned(experiment)
    size = len(experiment.content.arms) * experiment.content.n
    done = folder.repaired({one.key: size for one in wanted})
    folder.begin(run)
    with observer.stage(f"Experiment {experiment.name}", len(wanted)) as progress:
        progress.update(len(done))
        for one in wanted:
            if one.key in done:
                continue
            if observer.should_stop():
                raise StoppedError(_so_far("Stopped", len(done), len(wanted)))
            try:
                found = await _compared(experiment, client, one)
            except ServerError as error:
                raise ConfigError(_so_far(error.message, len(done), len(wanted))) from error
            folder.append(found)
            done[one.key] = found
            progress.update(len(done))
    return run


def _so_far(why: str, num_done: int, num_wanted: int) -> str:
    kept = f"{num_done} of {num_wanted} comparisons are kept; the same command goes on with the rest."
    return f"{why.rstrip('.')}. {kept}"


async def _probed(experiment: Experiment, client: AsyncServerClient) -> dict[str, Any]:
    """Have every arm write one token: what is wrong with any is told now, and the receipts say what each does."""
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


async def _compared(experiment: Experiment, client: AsyncServerClient, one: Planned) -> list[Record]:
    body = {
        **_shared(experiment),
        "messages": one.messages,
        "max_tokens": experiment.content.max_tokens,
        "n": experiment.content.n,
        "seed": one.seed,
        "by_token": True,
    }
    try:
        answer = await client.post("/v1/compare", body)
    except InvalidRequestError as error:
        raise experiment.refusal(f"prompts[{one.prompt}]: {error.message}", error.param) from error
    prompt = experiment.content.prompts[one.prompt]
    shared = {"key": one.key, "prompt": prompt if isinstance(prompt, str) else one.messages, "seed": one.seed}
    return [
        {**shared, "arm": arm["name"], "control_of": arm.get("control_of"), **sample}
        for arm in answer["arms"]
        for sample in arm["samples"]
    ]


def _setup(
    experiment: Experiment, served: ServerDescription, probe: dict[str, Any], weights: str | None
) -> dict[str, Any]:
    """Return what a sample depends on, beside its prompt and seed.

    Fingerprints name edits with the contents of their dictionaries, presets and doses having been looked up; the
    hash of the probe's prompt stands for system prompts that presets bring, and for the model's template. What presets
    say of sampling stands for nothing, as the experiment's own is sent.
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
    """Return what `run.json` is to say: the setup, and each session that added to it."""
    before = folder.run() or {}
    earlier = before.get("setup", {})
    if setup["weights"] is None:  # a server does not tell its own: they stay those that are known
        setup = {**setup, "weights": earlier.get("weights")}
    if before and (differing := _changed(earlier, setup)):
        changed = ", ".join(differing)
        message = (
            f"{folder.path} has samples of another experiment: {changed} differs. Give another folder with --out, or "
            "begin anew with --replace."
        )
        raise ConfigError(message)
    session = {"started": int(time.time()), "command": command, "versions": _versions(served), "weights": weights}
    return {
        "digest": digest(setup),
        "setup": setup,
        "dictionaries": [
            {key: one.get(key) for key in ("id", "hook", "architecture", "d_sae", "source", "sha256")}
            for one in served.dictionaries
        ],
        "experiment": experiment.text,
        "sessions": [*before.get("sessions", []), session][-_MAX_SESSIONS:],
    }


def _versions(served: ServerDescription) -> dict[str, Any]:
    version = dict(served.version)
    return {"steerserve": version.pop("version", None), **version}


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    changed = [name for name in after if name not in before or before[name] != after[name]]
    if before.get("weights") is None and "weights" in changed:  # so far they were not known
        changed.remove("weights")
    return changed
