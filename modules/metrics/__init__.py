"""The scores alone: from predictions to numbers, without model, trainer or tracker."""
