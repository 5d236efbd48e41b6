"""Operations whose kernels fail, as where a compiler or a device does."""

from typing import Any, NoReturn


class Broken:
    """Each operation raises."""

    joins_products = False

    def rms_norm(self, *_: Any) -> Any:
        """A norm that fails when it runs."""
        return self._fail

    def rotate(self, *_: Any) -> NoReturn:
        """Fails."""
        self._fail()

    def gate(self, *_: Any) -> NoReturn:
        """Fails."""
        self._fail()

    def _fail(self, *_: Any) -> NoReturn:
        raise RuntimeError("no kernel\nand a trace")
