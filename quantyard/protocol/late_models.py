"""Fields whose model is imported when a value is read: for large models that most commands do not need."""

from importlib import import_module
from typing import Annotated, Any

from pydantic import BaseModel, GetJsonSchemaHandler, PlainValidator
from pydantic.json_schema import JsonSchemaValue


class LateModel:
    """The mark of such a field; `module` defines the model `name`."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    @property
    def model(self) -> type[BaseModel]:
        """The model, imported now."""
        found: type[BaseModel] = getattr(import_module(self._module), self._name)
        return found

    def validated(self, value: object) -> BaseModel:
        """The value as the model; an error of pydantic's names the place in it."""
        return self.model.model_validate(value)

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(self.model.__pydantic_core_schema__)


def late_model(module: str, name: str) -> Any:
    """The annotation of a field with this model. Type checkers are shown the model itself, under `TYPE_CHECKING`."""
    mark = LateModel(module, name)
    return Annotated[Any, PlainValidator(mark.validated), mark]
