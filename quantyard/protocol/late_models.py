"""Fields whose model is imported when a value is read: for large models that most commands do not need."""

from importlib import import_module
from typing import Annotated, Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


class LateModel:
    """The mark of such a field; `module` defines the model `name`."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    @property
    def model(self) -> type[BaseModel]:
        """The model, imported now."""
        found: type[BaseModel] = getattr(import_module(self._module), self._name)
        return found

    def _validated(self, value: object) -> BaseModel:
        return self.model.model_validate(value)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validated)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(self.model.__pydantic_core_schema__)


def late_model(module: str, name: str) -> Any:
    """The annotation of a field with this model. Type checkers are shown the model itself, under `TYPE_CHECKING`."""
    return Annotated[Any, LateModel(module, name)]
