"""The validation: checks a whole input file in a thread before any of its requests runs."""

from array import array
from dataclasses import dataclass, field
from pathlib import Path

from server.batches.storage.custom_ids import CustomIds
from server.batches.storage.lines import BadLineError, Rules, check_line, read_lines
from server.openai.fields.batch import BatchError

MAX_ERRORS = 100


class BadInputError(Exception):
    """The file cannot be run; `errors` has the reasons by line, at most `MAX_ERRORS`."""

    def __init__(self, errors: list[BatchError]) -> None:
        super().__init__(errors[0].message)
        self.errors = errors


@dataclass
class Validation:
    """Validates one file. Other threads may read `num_requests` and set `is_cancelled`."""

    path: Path
    rules: Rules
    max_requests: int
    num_requests: int = 0
    is_cancelled: bool = False
    _errors: list[BatchError] = field(default_factory=list)

    def run(self) -> None:
        """Read the whole file. Raises `BadInputError`, `OSError`."""
        custom_ids, numbers = CustomIds(), array("I")
        with self.path.open("rb") as file:
            for number, line in read_lines(file, self.rules.max_line_bytes):
                if self.is_cancelled or len(self._errors) == MAX_ERRORS:
                    break
                if self.num_requests == self.max_requests:
                    self._note_too_many(number)
                    break
                self.num_requests += 1
                try:
                    request = check_line(line, self.rules)
                except BadLineError as error:
                    self._note(number, error)
                    continue
                custom_ids.add(request.custom_id)
                numbers.append(number)
        if self.is_cancelled:
            return
        if not self.num_requests:
            message = "The input file is empty: it must hold at least one request."
            self._errors.append(BatchError(code="empty_file", message=message))
        self._note_repetitions([numbers[index] for index in custom_ids.repetitions()])
        if self._errors:
            raise BadInputError(sorted(self._errors, key=lambda error: error.line or 0))

    def _note(self, number: int, error: BadLineError) -> None:
        message = str(error)
        self._errors.append(
            BatchError(code=error.code, message=message, param=error.param, line=number)
        )

    def _note_too_many(self, number: int) -> None:
        message = f"Too many requests: a batch may have {self.max_requests}."
        self._errors.append(BatchError(code="too_many_requests", message=message, line=number))

    def _note_repetitions(self, numbers: list[int]) -> None:
        """Add errors with the repeated ids, which are read again from the file by line number."""
        wanted = set(numbers[: MAX_ERRORS - len(self._errors)])
        if not wanted:
            return
        with self.path.open("rb") as file:
            for number, line in read_lines(file, self.rules.max_line_bytes):
                if number in wanted:
                    custom_id = check_line(line, self.rules).custom_id
                    message = f"Another request already has the custom_id '{custom_id}'."
                    error = BadLineError("duplicate_custom_id", message, "custom_id")
                    self._note(number, error)
                    wanted.remove(number)
                if not wanted:
                    return
