"""/v1/responses: the page of a response, and its parts. Pure."""

from __future__ import annotations

from typing import Any

from potato_client.job_report import JobReport
from potato_client.protocol import Progress
from potato_client.question import ChatMessage
from potatod import tool_calls

from . import tools
from .responses import PREFIX, Page


def page(id: str, record: Page, status: str, output: list[Page], usage: Page | None = None, error: Page | None = None) -> Page:
    return {
        "id": id,
        "object": "response",
        "created_at": record["created_at"],
        "status": status,
        "background": record["background"],
        "error": error,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": record["instructions"],
        "max_output_tokens": record["max_output_tokens"],
        "metadata": record["metadata"],
        "model": record["model"],
        "output": output,
        "parallel_tool_calls": record.get("parallel_tool_calls", True),
        "previous_response_id": record["previous_response_id"],
        "reasoning": {"effort": None, "summary": None},
        "store": record["store"],
        "temperature": record["temperature"],
        "text": record["text"],
        "tool_choice": record["tool_choice"],
        "tools": record["tools"],
        "top_p": record["top_p"],
        "truncation": "disabled",
        "usage": usage,
        "user": record["user"],
    }


def output(id: str, text: str, reasoning: str, status: str, offered: tool_calls.Tools) -> list[Page]:
    """Items of what has been said; ``offered``: tools that may have been called."""
    job = id.removeprefix(PREFIX)
    items = [reasoning_item(job, reasoning)] if reasoning else []
    found = tool_calls.read(text, offered).items if offered else ((text,) if text else ())
    texts = calls = 0
    for item in found:
        if isinstance(item, str):
            items.append(message_item(job, texts, item, status))
            texts += 1
        else:
            items.append(call_item(job, calls, item))
            calls += 1
    return items if found or status == "in_progress" else [*items, message_item(job, 0, "", status)]


def usage_of(prompt_tokens: int, completion_tokens: int) -> Page:
    """The zeros are not counted by the daemon, and OpenAI's clients want them to be there: docs/OPERATIONS.md says so."""
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt_tokens + completion_tokens,
    }


def began(progress: Progress | None) -> bool:
    """Whether a job of which nothing has come yet is computed, as far as was said."""
    return progress is not None and progress.state in ("prefill", "decode")


def status_of(report: JobReport) -> str:
    if report.state == "finished":
        return ended_as(report.reason)
    return {"failed": "failed", "cancelled": "cancelled", "queued": "queued", "paused": "queued"}.get(report.state, "in_progress")


def ended_as(reason: str) -> str:
    return {"stop": "completed", "length": "incomplete", "cancelled": "cancelled"}[reason]


def message_item(job: str, number: int, text: str, status: str) -> Page:
    item_status = status if status in ("completed", "in_progress") else "incomplete"
    return {"id": message_id(job, number), "type": "message", "role": "assistant", "status": item_status, "content": [text_part(text)]}


def message_id(job: str, number: int) -> str:
    return f"msg_{job}_{number}" if number else f"msg_{job}"


def reasoning_item(job: str, text: str) -> Page:
    return {"id": f"rs_{job}", "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def call_item(job: str, number: int, call: tool_calls.Call) -> Page:
    called = {"call_id": tool_calls.call_id(job, number), "name": call.name, "arguments": call.arguments}
    return {"id": f"fc_{job}_{number}", "type": "function_call", "status": "completed"} | called


def input_items(job: str, number: int, message: ChatMessage) -> list[Page]:
    """Of what was asked, the message of this number: with an assistant's thoughts before it and its calls behind."""
    if message.role == "tool":
        answered = {"call_id": message.tool_call_id, "output": message.content, "status": "completed"}
        return [{"id": f"fco_{job}_in_{number}", "type": "function_call_output"} | answered]
    part = text_part(message.content) if message.role == "assistant" else {"type": "input_text", "text": message.content}
    said = {"id": f"msg_{job}_in_{number}", "type": "message", "role": message.role, "status": "completed", "content": [part]}
    thought = [reasoning_item(f"{job}_in_{number}", message.reasoning)] if message.reasoning else []
    calls = [
        {"id": f"fc_{job}_in_{number}_{at}", "type": "function_call", "status": "completed"}
        | {"call_id": call.id, "name": call.name, "arguments": call.arguments}
        for at, call in enumerate(message.tool_calls)
    ]
    return [*thought, *([said] if message.content or not calls else []), *calls]


def text_part(text: str) -> Page:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def tools_of(record: Page) -> dict[str, Any]:
    """Those that the model was let call."""
    return {} if record["tool_choice"] == "none" else tools.known([{"function": tool} for tool in record["tools"]])
