"""`server PORT` and `client TARGET AUTHORITY-FILE HOST`: calls, of which some fail."""

import queue
import sys
from concurrent import futures

import grpc


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        match details.method:
            case "/echo.Echo/Unary":
                return grpc.unary_unary_rpc_method_handler(unary)
            case "/echo.Echo/Streams":
                return grpc.stream_stream_rpc_method_handler(lambda requests, _: (part[::-1] for part in requests))
            case "/echo.Echo/Fail":
                return grpc.unary_unary_rpc_method_handler(
                    lambda _, context: context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")
                )


def unary(request, context):
    context.set_trailing_metadata([("told", dict(context.invocation_metadata()).get("tell", "nothing"))])
    return request[::-1]


def server(port):
    serving = grpc.server(futures.ThreadPoolExecutor(8))
    serving.add_generic_rpc_handlers([Echo()])
    serving.add_insecure_port(f"0.0.0.0:{port}")
    serving.start()
    serving.wait_for_termination()


def client(target, authority, host):
    if authority == "-":
        channel = grpc.insecure_channel(target, [("grpc.default_authority", host)])
    else:
        with open(authority, "rb") as file:
            credentials = grpc.ssl_channel_credentials(file.read())
        channel = grpc.secure_channel(target, credentials, [("grpc.ssl_target_name_override", host)])
    answer, call = channel.unary_unary("/echo.Echo/Unary").with_call(b"abc", metadata=[("tell", "this")], timeout=20)
    print(answer, dict(call.trailing_metadata())["told"])

    # Each part is answered before the next one is sent.
    sent = queue.SimpleQueue()
    answers = channel.stream_stream("/echo.Echo/Streams")(iter(sent.get, None), timeout=20)
    for part in (b"1-", b"2-", b"3-"):
        sent.put(part)
        assert next(answers) == part[::-1]
    sent.put(None)
    assert list(answers) == []
    for method in ("/echo.Echo/Fail", "/other.Other/Unary"):
        try:
            channel.unary_unary(method)(b"", timeout=20)
        except grpc.RpcError as error:
            print(error.code().name)


mode, *args = sys.argv[1:]
server(int(args[0])) if mode == "server" else client(*args)
