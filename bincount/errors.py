"""The errors of the library, each with its remedy in the message.

BincountError
 ├── BadPicture           a file is no picture that can be used; the text begins with the kind of fault
 ├── SettingsError        a setting that cannot work, found when it is first used
 ├── SourceError          the source cannot be read at all: wrong address, no permission, no images
 │    └── SourceUnavailable   it may answer later: time-outs, server errors, throttling
 ├── DatasetError         the local dataset is in use, or disagrees with itself
 │    └── DiskFull            there is no room for what is to be written; another try would end alike
 ├── SnapshotNotFound     nothing was prepared yet
 ├── ModelNotFound        no trained or registered model where one was expected
 │    ├── ModelDamaged        its files are not what was saved
 │    ├── ModelUnreadable     its files are there, and this user may not read them
 │    └── ModelChanged        its files are, and yet it does not predict as it did in its test
 ├── WeightsUnavailable   pretrained weights could not be fetched or do not fit the model
 ├── TrainingFailed       the trainer ended without a result; another try resumes
 │    └── TrainingDiverged    the loss was no longer a number; another try would end alike
 └── ServiceUnavailable   the Prefect or the MLflow server does not answer
"""

import re

MASK = "***"
USERINFO = re.compile(r"(?<=://)[^\s/]*@")  # up to the last @ of the host's part, since a password may hold one too
SLASHED_USERINFO = re.compile(
    r"(?<=://)(?:\*{3}@)?[^\s/@:]+:(?!\d+/)[^\s@]*@"
)  # a password with a slash, and not HOST:PORT/
# What is named as a secret, in the query of a URL or in the words of a driver: password=, X-Amz-Signature=, sig=.
NAMED_SECRET = re.compile(
    r"(?i)(?:(?<=[?&;#\s'\"])|^)"
    r"([\w%-]*(?:passw(?:or)?d|passphrase|pwd|secret|token|signature|credentials?|api[_-]?key|access[_-]?key|account[_-]?key)"
    r"|(?:[\w-]+[_-])?(?:sig|auth|pass)|odbc_connect|(?<=[?&])key)"
    r"=('[^']*'|[\"'][^&\s;'\"]+|[^&\s;'\"]+)"
)


def mask_credentials(text: object) -> str:
    """Return a text with the credentials of every URL in it replaced by ***, for messages, logs and pages.

    What stands before the @ of a URL is masked as a whole, since a token may be written as the user's name.
    """
    masked = SLASHED_USERINFO.sub(f"{MASK}@", USERINFO.sub(f"{MASK}@", str(text)))
    return NAMED_SECRET.sub(rf"\1={MASK}", masked)


def mask_address(address: str) -> str:
    """Return one address with its credentials masked, also where the scheme is missing or a blank is in it.

    mask_credentials would not find them there, since it looks for URLs in a text.
    """
    before_host = r"(?s)(?<=://)[^/]*@" if "://" in address else r"(?s)^.*@"
    return re.sub(before_host, f"{MASK}@", mask_credentials(address))


def holds_credentials(url: str) -> bool:
    """Return whether a URL has a user, password or token in it."""
    return mask_address(url) != url


class BincountError(Exception):
    """Base of every error that the library raises on purpose."""


class BadPicture(BincountError):
    """A file is no picture that can be used; why, in a few words, the kind first: `kind: detail`."""


class SettingsError(BincountError):
    """A setting, or a combination of settings, cannot work."""


class SourceError(BincountError):
    """The source cannot be read; trying again will not help."""


class SourceUnavailable(SourceError):
    """The source did not answer; trying again later may help."""


class DatasetError(BincountError):
    """The local dataset is in use by another process, or its parts disagree."""


class DiskFull(DatasetError):
    """The disk, or what may be used of it, is full; with some space, running again goes on."""


class SnapshotNotFound(BincountError):
    """No snapshot has been prepared where one is needed."""


class ModelNotFound(BincountError):
    """No model is where one was expected."""


class ModelDamaged(ModelNotFound):
    """The files of a model are not what was saved, so that it is as good as gone."""


class ModelUnreadable(ModelNotFound):
    """The files of a model are there, and the user of this process may not read them."""


class ModelChanged(ModelNotFound):
    """A registered model does not reproduce the predictions of its test on this machine."""


class WeightsUnavailable(BincountError):
    """Pretrained weights could not be fetched, or do not fit the model."""


class TrainingFailed(BincountError):
    """The trainer process ended without a result; run again to resume from its last checkpoint."""


class TrainingDiverged(TrainingFailed):
    """The loss was no longer a number; the same settings would end alike."""


class ServiceUnavailable(BincountError):
    """A server that the run needs does not answer."""
