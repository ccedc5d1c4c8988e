"""Names and literals that the library in the sandbox and the host must agree on.

The host imports these instead of the library. The library's own tests prove that the two agree.
Standard library only, Python >= 3.9.
"""

from __future__ import annotations

# the modules that every sandbox provides
TOOLS_PACKAGE = "tools"
SKILLS_PACKAGE = "skills"
KNOWLEDGE_MODULE = "knowledge"
MODELS_MODULE = "llm"
PACKAGES_MODULE = "packages"

# the names of the package `tools` that no server's module can have
TOOLS_NAMES = (
    "search",
    "list",
    "map",
    "shim",
    "Slot",
    "ToolError",
    "ToolArgumentError",
    "ToolDeniedError",
    "ToolUnavailableError",
    "PlanEnded",
)

# the builtins that the sandbox adds to those of Python
SHOW_NAME = "show"
EXPORT_NAME = "export"

# the names of the module `llm`, which code also has without an import
MODEL_NAMES = (
    "ask_llm",
    "aask_llm",
    "ask_llm_batch",
    "llm_usage",
    "sub_agent",
    "asub_agent",
    "sub_agent_batch",
    "SUBMIT",
    "LlmError",
    "BudgetExceeded",
    "LlmAnswerError",
    "AgentFailed",
)

# what stands for something else in the arguments of a call
PLANNED_RESULT_TEXT = "<result of planned call {}>"
SLICE_KEY = "$slice"  # the only key of an object that refers to a slice of an input

GZIP_MAGIC = b"\x1f\x8b\x08"  # an input that starts with this is read decompressed
