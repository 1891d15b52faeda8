"""Reflection answers from schemas that are kept apart, and keeps to what each service needs."""

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.wrappers_pb2 import BytesValue
from grpclib.const import Cardinality, Handler

from actorserve import testing
from actorserve.proto import grpc_reflection_v1_pb2 as v1
from actorserve.proto.grpc_reflection_v1_grpc import ServerReflectionStub
from actorserve.proto.grpc_reflection_v1alpha_grpc import ServerReflectionStub as AlphaStub
from actorserve.proto.grpc_reflection_v1alpha_pb2 import ServerReflectionRequest as AlphaRequest
from actorserve.services.reflection import Conversation
from actorserve.services.schemas import Schema

Request = v1.ServerReflectionRequest
NOT_FOUND, INVALID = 5, 3


def user_file(service, field):
    """A "user.proto" with one message, of one field, and one service: two users may both have one."""
    file = FileDescriptorProto(name="user.proto", package="user", dependency=["base.proto"])
    kind = FieldDescriptorProto.TYPE_STRING
    message = file.message_type.add(name="Question")
    message.field.add(name=field, number=1, type=kind, label=FieldDescriptorProto.LABEL_OPTIONAL)
    message.extension_range.add(start=100, end=200)
    file.extension.add(
        name=f"more_{field}",
        number=150,
        type=kind,
        label=FieldDescriptorProto.LABEL_OPTIONAL,
        extendee=".user.Question",
    )
    file.service.add(name=service).method.add(name="Ask", input_type=".user.Question", output_type=".user.Question")
    return file


BASE = FileDescriptorProto(name="base.proto", package="base")
OTHER = FileDescriptorProto(name="other.proto", package="other")


class UserService:
    """A service object whose messages live in a pool of their own, beside files that it does not need."""

    def __init__(self, file):
        pool = DescriptorPool()
        for one in (BASE, OTHER, file):
            pool.AddSerializedFile(one.SerializeToString())
        self.path = f"/user.{file.service[0].name}/Ask"
        self.message = GetMessageClass(pool.FindMessageTypeByName("user.Question"))

    def __mapping__(self):
        return {self.path: Handler(None, Cardinality.UNARY_UNARY, self.message, self.message)}


class Handmade:
    """A service without a .proto file."""

    def __mapping__(self):
        return {"/hand.Made/Call": Handler(None, Cardinality.UNARY_UNARY, BytesValue, BytesValue)}


def talk(*services):
    return Conversation([Schema.of([service]) for service in services], v1)


def files(answer):
    return [FileDescriptorProto.FromString(data) for data in answer.file_descriptor_response.file_descriptor_proto]


FIRST, SECOND = user_file("First", "one"), user_file("Second", "two")


def test_two_schemas_of_one_file_name_stay_apart():
    """Each service's symbol brings its own file with what it imports; a file asked for next comes from there too."""
    conversation = talk(UserService(FIRST), UserService(SECOND))
    for wanted in (SECOND, FIRST, SECOND):
        for symbol in (f"user.{wanted.service[0].name}", f"user.{wanted.service[0].name}.Ask"):
            assert files(conversation.answer(Request(file_containing_symbol=symbol))) == [wanted, BASE]
        assert files(conversation.answer(Request(file_by_filename="user.proto"))) == [wanted]


def test_a_schema_is_no_larger_than_its_services_need():
    """Another file of the same pool is not shown."""
    conversation = talk(UserService(FIRST))
    answers = [conversation.answer(Request(file_by_filename=name)) for name in ("base.proto", "other.proto")]
    assert files(answers[0]) == [BASE]
    assert answers[1].error_response.error_code == NOT_FOUND


def test_extensions():
    """An extension by its number, all numbers of a message, and neither of what is not there."""
    conversation = talk(UserService(FIRST))
    ask = v1.ExtensionRequest
    found = conversation.answer(
        Request(file_containing_extension=ask(containing_type="user.Question", extension_number=150))
    )
    missing = conversation.answer(
        Request(file_containing_extension=ask(containing_type="user.Question", extension_number=151))
    )
    numbers = conversation.answer(Request(all_extension_numbers_of_type="user.Question"))
    unknown = conversation.answer(Request(all_extension_numbers_of_type="user.Nothing"))
    assert files(found) == [FIRST, BASE]
    assert (missing.error_response.error_code, unknown.error_response.error_code) == (NOT_FOUND, NOT_FOUND)
    assert list(numbers.all_extension_numbers_response.extension_number) == [150]
    assert numbers.all_extension_numbers_response.base_type_name == "user.Question"


def test_a_service_without_a_file_is_listed():
    """Its name is told, its symbol is NOT_FOUND; an empty request is INVALID_ARGUMENT."""
    conversation = talk(Handmade(), UserService(FIRST))
    listed = conversation.answer(Request(list_services="*")).list_services_response.service
    assert [one.name for one in listed] == ["hand.Made", "user.First"]
    assert conversation.answer(Request(file_containing_symbol="hand.Made")).error_response.error_code == NOT_FOUND
    assert conversation.answer(Request()).error_response.error_code == INVALID


async def test_both_versions_go_on_after_an_error(autojump_clock):
    """On one stream: an error in-band, then the list of what the listener serves, a user's service included."""
    seen = []
    serving = testing.serve({"models": {}}, workers="scripted", services=iter([UserService(FIRST)]))
    async with serving as app, app.channel("inference") as channel:
        for stub, request in [(ServerReflectionStub, Request), (AlphaStub, AlphaRequest)]:
            questions = [request(host="h", file_by_filename="nothing"), request(list_services="")]
            answers = await stub(channel).ServerReflectionInfo(questions)
            assert [answer.original_request for answer in answers] == questions
            assert answers[0].error_response.error_code == NOT_FOUND
            seen.append([one.name for one in answers[1].list_services_response.service])

    assert seen[0] == seen[1]
    assert [name.rpartition(".")[2] for name in seen[0]] == [
        "Health",
        "ServerReflection",
        "ServerReflection",
        "InferenceAPIsService",
        "First",
    ]
