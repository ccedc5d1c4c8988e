"""An MCP server whose tools return a picture and a sound."""

from __future__ import annotations

import io
import wave

from mcp.server import MCPServer
from mcp.server.mcpserver import Audio, Image

RED_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)

server = MCPServer("painter")


def make_silence() -> bytes:
    """Return a short sound."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8_000)
        file.writeframes(bytes(80))
    return buffer.getvalue()


@server.tool(structured_output=False)
def paint() -> list[str | Image]:
    """Return a picture with a caption."""
    return ["a red pixel", Image(data=RED_PIXEL, format="png")]


@server.tool(structured_output=False)
def play() -> Audio:
    """Return a short silence."""
    return Audio(data=make_silence(), format="wav")


if __name__ == "__main__":
    server.run()
