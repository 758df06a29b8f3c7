"""Every exception that tvmops raises, one class a failure.

A message names the argument, its value and what was expected. Each class states its
message once, as a format string over the fields that it is raised with.
"""

from __future__ import annotations

from typing import Any


class TvmopsError(Exception):
    """Base of all tvmops errors; `fields` holds the values the message was made from."""

    message = "{detail}"

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        super().__init__(self.message.format(**fields))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.fields)


def _rebuild(cls: type[TvmopsError], fields: dict[str, Any]) -> TvmopsError:
    """Unpickle an error: workers send theirs to the parent."""
    return cls(**fields)


# --- what to compute ------------------------------------------------------------------


class UnknownOpError(TvmopsError, ValueError):
    message = "op is {op!r}; expected one of {known}"


class WorkloadError(TvmopsError, ValueError):
    message = "{op}: field '{field}' is {value!r}; expected {expected}"


class WorkloadSyntaxError(TvmopsError, ValueError):
    message = "workload text {text!r}: {detail}; expected a form such as 'matmul m=8 n=8 k=8'"


class UnknownSuiteError(TvmopsError, ValueError):
    message = (
        "{name!r} names no suite; expected one of {known}, a file that ends in '.toml', or a workload's text"
    )


class SuiteError(TvmopsError, ValueError):
    message = "suite file {path}: {detail}"


# --- where to run it ------------------------------------------------------------------


class UnknownTargetError(TvmopsError, ValueError):
    message = "target is {name!r}; expected 'native' or one of {known}"


class TargetFileError(TvmopsError, ValueError):
    message = "target file {path}: field '{field}' is {value!r}; expected {expected}"


class NoTemplateError(TvmopsError, ValueError):
    message = "no schedule template covers '{workload}' on target '{target}'"


# --- how to schedule it ---------------------------------------------------------------


class KnobError(TvmopsError, ValueError):
    message = "{template}: knob '{knob}' is {value!r}; expected {expected}"


class UnknownStrategyError(TvmopsError, ValueError):
    message = "strategy is {name!r}; expected one of {known}"


class ArgumentError(TvmopsError, ValueError):
    message = "argument '{argument}' is {value!r}; expected {expected}"


# --- building and measuring -----------------------------------------------------------


class NoLinkerError(TvmopsError):
    message = (
        "nothing here can link a shared library (tried: {tried}); "
        "install a C compiler (gcc or clang), or lld, or `pip install ziglang`"
    )


class NoCrossLinkerError(TvmopsError):
    message = (
        "nothing here can link a shared library for {arch} (tried: {tried}); install Debian's "
        "binutils-{arch}-linux-gnu or gcc-{arch}-linux-gnu, or lld, or `pip install ziglang`"
    )


class RuntimeDownloadError(TvmopsError):
    message = (
        "there is no TVM runtime for {arch} here ({detail}); "
        "$TVMOPS_RUNTIMES names a folder that holds {file}"
    )


class NoCudaCompilerError(TvmopsError):
    message = (
        "nothing here compiles CUDA (no {tried}); install the CUDA toolkit, "
        "or `pip install nvidia-cuda-nvcc nvidia-cuda-runtime`"
    )


class CudaError(TvmopsError):
    message = "CUDA code for {code}: {detail}"


class ModelToolsError(TvmopsError):
    message = "modelling needs {what}: {detail}; scripts/arm-environment sets it up"


class LinkError(TvmopsError):
    message = "linking {path} with {linker} failed: {detail}"


class ScratchError(TvmopsError):
    message = "scratch folder {path}: cannot write ({detail}); $TMPDIR names another place for it"


class WorkerError(TvmopsError):
    message = "the {role} worker could not start: {detail}"


class TokenError(TvmopsError, ValueError):
    message = "fleet token {place}: {detail}"


class FleetError(TvmopsError):
    message = "fleet tracker {tracker}: {detail}"


class NoDeviceError(FleetError):
    message = (
        "fleet tracker {tracker}: has no device of target '{target}', it has {devices}; "
        "`tvmops fleet device --tracker {tracker} --target {target}` makes one of a board"
    )


# --- logs -----------------------------------------------------------------------------


class LogReadError(TvmopsError):
    message = "tuning log {path}: {detail}"


class LogWriteError(TvmopsError):
    message = "tuning log {path}: cannot write ({detail}); all {kept} records before this one are kept"


class BundleError(TvmopsError):
    message = "bundle {path}: {detail}"


class NoRecordError(TvmopsError, LookupError):
    message = "no usable record for '{workload}' on target '{target}' in {logs}; tune it first"


# --- the library ----------------------------------------------------------------------


class LibraryError(TvmopsError):
    message = "library {path}: {detail}"


class LibraryMissingError(LibraryError, FileNotFoundError):
    message = "library {path}: {detail}; expected what `tvmops export` wrote"


class LibraryDamagedError(LibraryError):
    message = "library {path}: file '{file}' {detail}; nothing was executed, export it again"


class LibraryVersionError(LibraryError):
    message = "library {path}: manifest schema is {schema}; this tvmops reads {expected}"


class LibraryTargetError(LibraryError):
    message = "library {path}: holds {holds}; this machine ({machine}) lacks {missing}"


class LibraryWriteError(LibraryError):
    message = "library {path}: cannot be written ({detail}); what was there before is kept"


class CacheError(LibraryError):
    message = "library {path}: cannot unpack to {folder} ({detail}); $TVMOPS_CACHE names another place for it"


class RuntimeMissingError(LibraryError):
    message = "library {path}: its kernels need the TVM runtime '{file}', which is not there"


# --- calls ----------------------------------------------------------------------------


class CallError(TvmopsError, ValueError):
    message = "{op}: argument '{argument}' is {value}; expected {expected}"


class CallTypeError(TvmopsError, TypeError):
    message = "{op}: argument '{argument}' is {value}; expected {expected}"


class NotInLibraryError(TvmopsError, LookupError):
    message = "library {path}: no kernel answers '{workload}'; it holds {holds}"
