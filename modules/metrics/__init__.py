"""The scores: from predictions to numbers, without model, trainer or tracker."""
