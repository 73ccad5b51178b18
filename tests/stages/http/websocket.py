"""`server PORT` sends messages back as they are; `client URL HOST CA` sends some, and says whether they came back."""

import asyncio
import ssl
import sys

import websockets


async def server(port):
    async def echo(socket):
        async for message in socket:
            await socket.send(message)

    async with websockets.serve(echo, "0.0.0.0", port, max_size=None):
        await asyncio.Future()


async def client(url, host, authority):
    context = ssl.create_default_context(cafile=authority) if url.startswith("wss") else None
    address = "10.0.1.1"
    port = 443 if context else 80
    more = {"ssl": context, "server_hostname": host} if context else {}
    async with websockets.connect(url, host=address, port=port, max_size=None, **more) as socket:
        for size in (1, 125, 70_000, 3_000_000):
            message = bytes(size)
            await socket.send(message)
            assert await socket.recv() == message
        await socket.send("words")
        print(await socket.recv())


mode, *args = sys.argv[1:]
asyncio.run(server(int(args[0])) if mode == "server" else client(*args))
