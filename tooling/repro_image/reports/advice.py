"""Verdict and reason -> what to do next, as sentences; commands stand in backquotes."""

from repro_image.core.comparison import Comparison, Reason, Verdict

_MATCH = ("Nothing: the tag still answers the same. Keep this report beside the epoch.",)
_EFFECT = (
    "The change makes a difference: keep it out of what has to repeat, or make it a new epoch with `build`."
)
_NO_EFFECT = "The change makes no difference that the golden sees."
_WITHOUT = "Run `verify TAG` without it to prove the tag itself."
_DRIFT = (
    "Decide whether answers that differ as little as order of work and rounding make them are enough here.",
    "Bits can be had as well: `verify TAG --record` adds this machine's class to the epoch.",
)
_NEXT = {
    Reason.CONSTRAINT: (
        "Run `repro-image check` on this machine: it names each broken rule and its source.",
        "Verify on a machine that meets them.",
    ),
    Reason.CLASS: (
        "Verify on a machine of the recorded class.",
        "Or add this machine's class to the epoch with `verify TAG --record`, and verify against that.",
        "Or judge the answers with `verify TAG --across`, where the epoch has a noise floor.",
    ),
    Reason.SUITE: (
        "Verify with the release of repro-image that recorded the epoch; `epochs show` names it.",
        "Or record a new epoch with `build`.",
    ),
    Reason.TOKENIZER: (
        "Compare tokenizer and chat template with the recorded ones: `fetch` proves the files of the lock.",
        "Where the new tokenizer is wanted, record a new epoch with `build`: it is another subject.",
    ),
    Reason.MOVED_TAG: (
        "Find out who moved the tag: `diff` of the two digests names the files that differ.",
        "Ask for the epoch by digest meanwhile, or bring its image back with `verify TAG --rebuild`.",
    ),
    Reason.UNSTABLE: (
        "Run it again with `--repeat 3` on an idle machine, with whole cores or a GPU of its own.",
        "Look for what is not fixed: an engine in its own process, batches, autotuning, memory errors.",
        "Do not record an epoch from this image before it agrees with itself.",
    ),
    Reason.POWER: (
        "Choose a larger suite in image.toml, such as `full`, and record a new epoch with `build`.",
        "Or ask for less, with a larger `--must-see`.",
    ),
    Reason.WEIGHTS: (
        "Run `fetch`: it proves every file of the model against its lock.",
        "Where the files are right, look at what loads them: dtype, quantisation, another engine.",
    ),
    Reason.SAMPLING: (
        "Compare what draws the tokens: sampling seeds, temperature, top_p, the sampler's backend.",
        "The model itself computes the same, so weights and kernels need no look.",
    ),
    Reason.MODEL: (
        "Check that this is the model of the epoch: another revision, a fine-tune, a wrong prompt format.",
        "Run `fetch`: it proves every file of the model against its lock.",
    ),
    Reason.NUMERIC: (
        "Look for what changes arithmetic only: engine settings, batching, caches, kernels, threads.",
        "Run `diff` on the two images where there are two: it names each file that differs.",
        "Verify on a second machine of the same class: that tells a changed image from a changed machine.",
    ),
}


def advice(comparison: Comparison, *, is_what_if: bool) -> tuple[str, ...]:
    """Return what to do next, the likeliest help first.

    is_what_if: whether the subject was changed on purpose; then the change is the cause, and nothing is known
                of the tag.
    """
    if is_what_if and comparison.levels:
        return (_NO_EFFECT if comparison.verdict is Verdict.MATCH else _EFFECT, _WITHOUT)
    if comparison.verdict is Verdict.MATCH:
        return _MATCH
    if comparison.verdict is Verdict.DRIFT:
        return _DRIFT
    return _NEXT[comparison.reason] if comparison.reason else ()
