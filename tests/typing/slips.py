"""What a type checker must refuse: each line's complaint is expected, and a missing one is an error itself."""

from flux_klein_async import FluxKleinClient, TextToImageInput


async def main(client: FluxKleinClient) -> None:
    with client:  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    list(client.generate_many(["a"]))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await client.generate_many(["a"])  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    await client.handle("an-id")  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    client.generate("a cat")  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    await client.download_bytes(client.generate("a cat"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.generate(b"a cat")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.generate("a cat", width="512")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.generate("a cat", on_abandon="forget")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FluxKleinClient(journal="run.sqlite")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FluxKleinClient(budget=25)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    TextToImageInput(prompt="a cat", steps=8)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    TextToImageInput(width=8)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
