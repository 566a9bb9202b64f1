"""The one way in which the imaging wing says no to a file. Does not know which reasons exist: data_schemas does."""


class Refused(Exception):  # noqa: N818 (an outcome, not an error)
    """A file that cannot become a row, or a row that cannot become a radiograph.

    Args:
        reason: A word of the closed list in data_schemas/refusals.json.
        detail: What was found, in counts and DICOM words. Never a patient identifier, a path or a value of the file.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
