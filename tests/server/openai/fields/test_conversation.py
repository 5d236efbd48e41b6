"""Fields of a conversation: variables that a request may not set."""

import pytest

from server.http.errors import ApiError
from server.openai.fields.conversation import check_variables


def test_template_variables_cannot_replace_reserved_names() -> None:
    check_variables({"enable_thinking": False})
    with pytest.raises(ApiError, match="must not hold 'messages'"):
        check_variables({"messages": []})
