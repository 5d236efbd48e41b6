"""Chat templates of several families, in our own words, and tokenizers that carry them."""

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken

from server.text.tokenizer import Tokenizer
from tests.server.world import Daemon, byte_level_tokenizer
from wire.messages import EngineReady

# Plain ChatML; knows system, user and assistant, no tools.
CHATML = """\
{%- for message in messages -%}
{%- if message.role not in ["system", "user", "assistant"] -%}
{{ raise_exception("I do not know the role " ~ message.role) }}
{%- endif -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

# As Qwen3: tools in the system's turn, calls in <tool_call>, reasoning in <think>.
QWEN = """\
{%- if tools -%}
<|im_start|>system
Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}
Answer {"name": <function-name>, "arguments": <args-json-object>} in <tool_call></tool_call>.
<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ "user" if message.role == "tool" else message.role }}
{% if message.role == "tool" -%}
<tool_response>{{ message.content }}</tool_response>
{%- else -%}
{{ (message.content or "").split("</think>")[-1] }}
{%- endif -%}
{%- for call in message.tool_calls or [] %}
{%- set called = call.function -%}
<tool_call>{"name": "{{ called.name }}", "arguments": {{ called.arguments | tojson }}}</tool_call>
{%- endfor -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false -%}
<think>

</think>

{% endif -%}
{%- endif -%}
"""

# As DeepSeek-R1's distilled models: the prompt itself opens the reasoning.
OPENS_REASONING = QWEN.replace(
    "{% if enable_thinking is defined and enable_thinking is false -%}\n<think>\n\n</think>\n\n",
    "{% if true -%}\n<think>\n",
)

# As Llama 3.1: begins with the begin token, calls as JSON after <|python_tag|>.
LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
<|start_header_id|>{{ "ipython" if message.role == "tool" else message.role }}<|end_header_id|>

{% if message.tool_calls is defined -%}
{%- set call = message.tool_calls[0].function -%}
<|python_tag|>{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}
{%- else -%}
{%- if loop.last and tools %}{{ tools | tojson }} {% endif -%}
{{ message.content | trim }}
{%- endif -%}
<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start_header_id|>assistant<|end_header_id|>

{% endif -%}
"""

# As Mistral Small 3.2: calls behind [TOOL_CALLS], with identifiers of nine letters and digits.
MISTRAL = """\
{{- bos_token -}}
{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif -%}
{%- for message in messages -%}
{%- if message.role == "tool" -%}
{%- if message.tool_call_id | length != 9 %}{{ raise_exception("length 9, please") }}{% endif -%}
[TOOL_RESULTS]{{ message.tool_call_id }}[TOOL_CONTENT]{{ message.content }}[/TOOL_RESULTS]
{%- elif message.tool_calls -%}
{%- for call in message.tool_calls -%}
{%- if call.id | length != 9 %}{{ raise_exception("length 9, please") }}{% endif -%}
[TOOL_CALLS]{{ call.function.name }}[CALL_ID]{{ call.id }}
{{- "[ARGS]" }}{{ call.function.arguments | tojson }}
{%- endfor -%}
</s>
{%- elif message.role == "assistant" -%}
{{ message.content }}</s>
{%- else -%}
[INST]{{ message.content }}[/INST]
{%- endif -%}
{%- endfor -%}
"""

# As some models that also see: content is always a list of parts.
PARTS_ONLY = """\
{%- for message in messages -%}
[{{ message.role }}]
{%- for part in message.content %}{% if part.type == "text" %}{{ part.text }}|{% endif %}
{% endfor %}
{%- endfor -%}
"""


def chatty(
    template: str | None, *special: str, begin: bool = False, added: Sequence[str] = ()
) -> Tokenizer:
    """The little tokenizer with a chat template, and with more special and other added tokens."""
    tokenizer: Any = byte_level_tokenizer(begin=begin)
    tokenizer.chat_template = template
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return Tokenizer(tokenizer)


def with_long_context(daemon: Daemon, max_model_len: int = 8192) -> Daemon:
    """Raise the engine's limit: chat prompts are long for a tokenizer of bytes."""
    daemon.engine.ready = EngineReady(2, max_model_len // 16, 16, max_model_len)
    daemon.engine.introduce()
    daemon.wait_until(
        lambda: daemon.client.ready is not None and daemon.client.ready.max_model_len > 64
    )
    return daemon
