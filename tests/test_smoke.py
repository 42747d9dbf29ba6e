import asyncio


async def test_generate_in_virtual_time(klein_client, klein_emulator, tmp_path):
    result = await klein_client.generate("a snow leopard")
    assert klein_emulator.accepted == 1
    assert asyncio.get_running_loop().time() < 2
    [path] = await klein_client.download(result, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
